"""`dstack govern history`: what happened, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from dstack.chain.action_words import grant_sentence, show_time
from dstack.chain.client import checked_address, printable
from dstack.chain.governed import Governed, KnownProposal
from dstack.chain.history import PastEvent
from dstack.chain.index import EventIndex, carry_on
from dstack.cli.govern.connection import Connection, answer, connect, connection_options
from dstack.errors import InputError

POLL_SECONDS = 2.0
_EXAMPLES = """\b
Examples:
  dstack govern history
  dstack govern history --contract 0xa9b0... --limit 20 --json"""


@click.command(name="history", epilog=_EXAMPLES)
@click.option("--contract", metavar="ADDRESS", help="Only events of this contract.")
@click.option("--event", metavar="NAME", help="Only events of this name.")
@click.option("--follow", is_flag=True, help="Then show what happens, as it happens, until Ctrl-C.")
@click.option("--limit", type=click.IntRange(1), help="Only so many, the newest.")
@connection_options
def command(
    *,
    contract: str | None,
    event: str | None,
    follow: bool,
    limit: int | None,
    deployment: str,
    rpc_url: str,
    as_json: bool,
) -> None:
    """List every event of the governed contracts, oldest first, with its block and transaction."""
    only = None if contract is None else checked_address(contract, what="--contract")
    if follow and as_json:
        raise InputError("--follow: want it without --json, for it has no end")
    connection = connect(rpc_url, deployment)
    governed = connection.governed()

    def wanted(one: PastEvent) -> bool:
        return only in (None, one.contract) and event in (None, one.name)

    events = list(filter(wanted, governed.events))
    shown = events if limit is None else events[-limit:]
    facts = [
        {
            "time": one.at.isoformat(),
            "block": one.block,
            "transaction": "0x" + one.transaction.hex(),
            "contract": one.contract,
            "event": one.name,
            "arguments": _plain(one.arguments),
        }
        for one in shown
    ]
    answer(as_json, {"events": facts}, [_line(one, governed) for one in shown])
    if follow:
        _follow(connection, governed, wanted)


def _follow(connection: Connection, governed: Governed, wanted: Callable[[PastEvent], bool]) -> None:
    """Show what the contracts known now emit from here on, and what a reorganisation takes out again."""
    deployment = connection.deployment
    contracts = {deployment.operator: "UpgradeOperator", deployment.kms_auth: "KmsAuth"}
    contracts |= dict.fromkeys(governed.allowed.apps, "AppAuth")
    index = EventIndex(governed.block + 1)
    while True:
        time.sleep(POLL_SECONDS)
        known = {(one.block_hash, one.index) for one in index.events}
        index = carry_on(connection.w3, contracts, index)
        if index.dropped:
            click.echo(f"! the chain took back blocks with {index.dropped} of these events; what stands follows")
        for one in index.events:
            if (one.block_hash, one.index) not in known and wanted(one):
                click.echo(_line(one, governed))


def _line(event: PastEvent, governed: Governed) -> str:
    return f"{show_time(event.at)}  block {event.block:<8} {event.contract}  {event.name}{_detail(event, governed)}"


def _detail(event: PastEvent, governed: Governed) -> str:
    known = {bytes(known.id): known for known in governed.proposals}.get(event.arguments.get("id", b""))
    if known is not None:
        return f" 0x{known.id.hex()}{_sentences(known) if event.name == 'ProposalQueued' else ''}"
    return "".join(f" {name}={_word(value)}" for name, value in event.arguments.items())


def _sentences(known: KnownProposal) -> str:
    return ": " + "; ".join(map(grant_sentence, known.actions))


def _word(value: object) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    text = json.dumps(_plain(value)) if isinstance(value, Mapping | list | tuple) else str(value)
    return printable(text, 1000)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, Mapping):
        return {name: _plain(member) for name, member in value.items()}
    return [_plain(member) for member in value] if isinstance(value, list | tuple) else value
