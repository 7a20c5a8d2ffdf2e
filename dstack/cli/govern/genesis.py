"""`dstack govern genesis`: where the custody of an app's secure file begins: looked up, or proposed."""

from __future__ import annotations

from typing import Any

import click
from eth_typing import ChecksumAddress

from dstack.chain.action_data import Genesis, parse_action_data
from dstack.chain.action_text import parse_hash
from dstack.chain.action_words import grant_sentence, show_time
from dstack.chain.client import checked_address
from dstack.chain.drafting import delay_of, draft_content
from dstack.chain.governed import Governed
from dstack.chain.operator import Action, Kind, propose_call
from dstack.cli.govern.acting import act, acting_options
from dstack.cli.govern.connection import Connection, answer, connect, connection_options
from dstack.errors import InputError, RefusedError

_EXAMPLES = """\b
Examples:
  dstack govern genesis 0xa9b0...
  dstack govern genesis 0xa9b0... --fingerprint 6fa8... --evidence 51f0... --uri ipfs://... --key-file owner.json
  dstack govern genesis 0xa9b0... --fingerprint 6fa8... --evidence 51f0... --uri ipfs://... --out genesis.json"""


@click.command(name="genesis", epilog=_EXAMPLES)
@click.argument("app", metavar="APP")
@click.option("--fingerprint", metavar="HEX", help="Propose it: the secure file's, as its first node says it.")
@click.option("--evidence", metavar="HEX", help="The hash of the genesis, as the node says it.")
@click.option("--uri", default="", help="Where everybody finds that evidence.")
@connection_options
@acting_options
def command(
    *,
    app: str,
    fingerprint: str | None,
    evidence: str | None,
    uri: str,
    deployment: str,
    rpc_url: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Show where the custody of APP's secure file begins; with --fingerprint and --evidence, propose it.

    It is recorded once, for good, and so like every grant not before 48 hours have passed.
    """
    if (fingerprint is None) != (evidence is None):
        raise InputError("want --fingerprint and --evidence together")
    address = checked_address(app, what="APP")
    connection = connect(rpc_url, deployment)
    governed = connection.governed()
    if address not in governed.allowed.apps:
        raise RefusedError(f"app {address}: it is not governed by UpgradeOperator {connection.deployment.operator}")
    if fingerprint is None or evidence is None:
        _show(address, governed, as_json)
        return
    wanted = Genesis(parse_hash(fingerprint, what="--fingerprint"), parse_hash(evidence, what="--evidence"))
    _propose(connection, governed, Action(Kind.GENESIS, address, wanted.encode()), uri=uri, as_json=as_json, how=how)


def _show(app: ChecksumAddress, governed: Governed, as_json: bool) -> None:
    recorded = governed.genesis.get(app)
    waiting = [
        (known, meaning)
        for known in governed.pending()
        for action in known.actions
        if action.target == app and isinstance(meaning := parse_action_data(action.kind, action.data), Genesis)
    ]
    facts = {
        "app": app,
        "recorded": None if recorded is None else _facts(recorded),
        "pending": [{"id": "0x" + known.id.hex()} | _facts(meaning) for known, meaning in waiting],
    }
    lines = ["no genesis is recorded"]
    if recorded is not None:
        lines = [f"fingerprint  {recorded.fingerprint.hex()}", f"evidence     {recorded.evidence.hex()}"]
    lines += [
        f"pending      0x{known.id.hex()}: {meaning.fingerprint.hex()}, from {show_time(known.proposal.ready_at)} on"
        for known, meaning in waiting
    ]
    answer(as_json, facts, lines)


def _propose(
    connection: Connection, governed: Governed, action: Action, *, uri: str, as_json: bool, how: dict[str, Any]
) -> None:
    recorded = governed.genesis.get(action.target)
    if recorded is not None:
        raise RefusedError(f"app {action.target}: its genesis is {recorded.fingerprint.hex()}, and is never replaced")
    ready_at = governed.at + delay_of(connection.w3, connection.deployment, [action])
    sentence = f"from {show_time(ready_at)} on: {grant_sentence(action)}"
    content = draft_content(connection.w3, connection.deployment, [action], [], uri)
    call = propose_call(connection.deployment.operator, content)
    facts = {"sentence": sentence}
    act(connection, call, governed.owner, role="owner", as_json=as_json, facts=facts, lines=[sentence], **how)


def _facts(genesis: Genesis) -> dict[str, str]:
    return {"fingerprint": genesis.fingerprint.hex(), "evidence": genesis.evidence.hex()}
