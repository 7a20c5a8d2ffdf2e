"""`dstack handover`: bring a secure file from an old node to a new one, or see whether that would be allowed."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from web3 import HTTPProvider, Web3

from dstack.chain.deployment_file import MAX_FILE, parse_deployment
from dstack.chain.governed import read_governed
from dstack.cli.files import read_input
from dstack.cli.handover_anchor import command as anchor
from dstack.cli.handover_receipt import command as verify
from dstack.cli.handover_session import Node, Progress, Session
from dstack.cli.handover_words import When, explain, what_would_help, when_allowed
from dstack.cli.printable import printable
from dstack.errors import DstackError, InputError, KeyReleaseDeniedError, PeerRefusedError
from replicator.custody import Receipt

_MAX_COMPOSE = 50 << 20
_PATIENCE_SECONDS = 2.0
_EXAMPLES = """\b
Examples:
  dstack handover http://old:4001 http://new:4001 --dry-run
  dstack handover http://old:4001 http://new:4001 --app-compose new/app-compose.json
  dstack handover run http://old:4001 http://new:4001 --receipt receipt.json
  dstack handover http://old:4001 http://new:4001 --dry-run --deployment deployment.json --rpc-url $RPC
  dstack handover verify 4f..a0.received.json --collateral collateral.json

Exit codes: 0 ok, 1 refused, 2 bad input, 3 could not ask."""


class _DefaultGroup(click.Group):
    """Runs `run` where the first word names no other sub-command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the sub-command, or take all words for `run`."""
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "run", self.commands["run"], args


@click.group(
    cls=_DefaultGroup,
    name="handover",
    epilog=_EXAMPLES,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
)
def command() -> None:
    """Hand a secure file from an old node to a new one: dstack handover OLD NEW.

    OLD and NEW are the addresses of two replicators. You carry; the nodes judge each other and the chain judges both.
    `dstack handover run --help` shows the options.
    """


@command.command(epilog=_EXAMPLES, short_help="carry the three rounds")
@click.argument("old")
@click.argument("new")
@click.option("--dry-run", is_flag=True, help="Only say whether it would be accepted. Uses one of NEW's 8 places.")
@click.option("--app-compose", metavar="FILE", help="What the new node is meant to run; for explaining a refusal.")
@click.option(
    "--deployment",
    metavar="FILE",
    envvar="DSTACK_DEPLOYMENT",
    help="Where the contracts are; with --rpc-url, says when it may change.",
)
@click.option("--rpc-url", metavar="URL", envvar="DSTACK_RPC_URL", help="The chain's endpoint, JSON-RPC.")
@click.option("--receipt", metavar="FILE", help="Write the receipt here, with the evidence that binds it.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def run(
    *,
    old: str,
    new: str,
    dry_run: bool,
    app_compose: str | None,
    deployment: str | None,
    rpc_url: str | None,
    receipt: str | None,
    as_json: bool,
) -> int:
    """Carry the three rounds between OLD and NEW."""
    compose = read_input(app_compose, limit=_MAX_COMPOSE) if app_compose else None
    if receipt and not Path(receipt).absolute().parent.is_dir():
        raise InputError(f"--receipt: want a file in a folder that is there, got {receipt}")
    session = Session(Node.at(old, "old node"), Node.at(new, "new node"))
    began = time.monotonic()
    try:
        session.ask()
        if dry_run:
            judged = session.dry_run()
            words = "would be accepted now, in the state of block {block}"
            _say({"accepted": True, **judged}, as_json, words, simulated=judged["simulated"])
            return 0
        with _progress(as_json) as progress:
            if not as_json:
                session.say = _on_a_line_of_its_own
            done = session.transfer(progress)
    except (KeyReleaseDeniedError, PeerRefusedError) as exc:
        whens: tuple[When, ...] | DstackError | None = None
        if deployment and rpc_url:
            try:
                whens = _whens(exc, session, deployment, rpc_url)
            except DstackError as unknown:
                whens = unknown  # The refusal is the answer, whether or not that could be found out besides.
        return _refused(exc, session, compose, whens, as_json)
    _handed_over(done, time.monotonic() - began, as_json)
    if receipt:
        Path(receipt).write_text(json.dumps(session.kept(), indent=2) + "\n")
    return 0


def _refused(
    error: DstackError,
    session: Session,
    compose: bytes | None,
    whens: tuple[When, ...] | DstackError | None,
    as_json: bool,
) -> int:
    meant = None if session.refused_old_node(error) else compose
    reasons = list(explain(error, session.evidence_of_refused(error), meant))
    if isinstance(whens, DstackError):
        reasons.append(f"when this may change is not known: {whens}")
    elif whens == ():
        reasons.append("no proposal that waits would change this: an owner announces one (dstack govern propose)")
    known = whens if isinstance(whens, tuple) else ()
    if as_json:
        rule = error.rule if isinstance(error, KeyReleaseDeniedError) else ""
        facts = {"accepted": False, "error": str(error), "kind": type(error).__name__, "rule": rule}
        when = [
            {"proposal": each.proposal, "stage": each.stage, "ready_at": each.ready_at.isoformat()} for each in known
        ]
        click.echo(json.dumps({**facts, "because": reasons, "when": when}))
        return error.exit_code
    # A node's log, and what a node says, may hold anything.
    click.echo(printable(f"refused: {error}"))
    for reason in (*reasons, *(each.sentence() for each in known)):
        click.echo(f"  {printable(reason)}")
    return error.exit_code


def _whens(refusal: DstackError, session: Session, deployment: str, rpc_url: str) -> tuple[When, ...] | None:
    """Which pending proposals would change *refusal*; None where none is of a kind that could."""
    if not session.request:
        return None
    app = f"0x{session.quoted.request.app_id.hex()}"
    wanted = what_would_help(refusal, app, session.evidence_of_refused(refusal))
    if wanted is None:
        return None
    where, first_block = parse_deployment(read_input(deployment, limit=MAX_FILE))
    governed = read_governed(Web3(HTTPProvider(rpc_url)), where, first_block=first_block)
    return when_allowed(governed, wanted)


def _handed_over(receipt: Receipt, seconds: float, as_json: bool) -> None:
    terms = receipt.terms
    facts = {
        "handed_over": True,
        "receipt": receipt.hash().hex(),
        "head": receipt.head().hex(),
        "fingerprint": terms.fingerprint.hex(),
        "genesis": terms.genesis.hex(),
        "depth": terms.depth + 1,
        "size": terms.size,
        "block": terms.block_number,
        "simulated_root": terms.simulated_root,
        "seconds": round(seconds, 3),
    }
    text = (
        "handed over {size} bytes in {seconds} s, allowed in the state of block {block}\n"
        "fingerprint {fingerprint}\nreceipt {receipt}, handover {depth} since genesis {genesis}"
    )
    _say(facts, as_json, text, simulated=terms.simulated_root)


def _say(facts: dict[str, Any], as_json: bool, text: str, *, simulated: bool) -> None:
    if simulated:
        text = "SIMULATED: no Intel CPU stands behind these quotes\n" + text
    click.echo(json.dumps(facts) if as_json else text.format(**facts))


def _on_a_line_of_its_own(text: str) -> None:
    start = "\n" if sys.stderr.isatty() else ""
    click.echo(f"{start}... {printable(text)}", err=True)


@contextmanager
def _progress(as_json: bool) -> Iterator[Progress]:
    """A bar on a terminal, a line every two seconds elsewhere, nothing beside JSON."""
    if as_json:
        yield lambda _done, _all: None
        return
    show: Callable[[int, int], None] = _bar if sys.stderr.isatty() else _lines()
    silence = threading.Timer(
        _PATIENCE_SECONDS, _on_a_line_of_its_own, ["waiting for the old node: it reads all first"]
    )
    silence.daemon = True
    silence.start()

    def first_or_next(done: int, everything: int) -> None:
        silence.cancel()
        show(done, everything)

    try:
        yield first_or_next
    finally:
        silence.cancel()
    if sys.stderr.isatty():
        click.echo("", err=True)


def _bar(done: int, everything: int) -> None:
    filled = 30 * done // everything
    click.echo(f"\r[{'#' * filled}{'.' * (30 - filled)}] {100 * done // everything:3d} %", nl=False, err=True)


def _lines() -> Callable[[int, int], None]:
    last = datetime.now(UTC)

    def show(done: int, everything: int) -> None:
        nonlocal last
        now = datetime.now(UTC)
        if (now - last).total_seconds() >= 2:
            last = now
            click.echo(f"{done} of {everything} bytes", err=True)

    return show


command.add_command(verify)
command.add_command(anchor)
