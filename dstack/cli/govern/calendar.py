"""`dstack govern calendar`: what becomes possible or ends, and when."""

from __future__ import annotations

import click

from dstack.chain.action_text import parse_time
from dstack.chain.action_words import show_time
from dstack.chain.outlook import allowed_lines, upcoming
from dstack.cli.govern.connection import answer, connect, connection_options
from dstack.errors import InputError
from dstack.policy.timelock import calendar

_EXAMPLES = """\b
Examples:
  dstack govern calendar
  dstack govern calendar --at 2026-12-15T08:00:00Z --json"""


@click.command(name="calendar", epilog=_EXAMPLES)
@click.option("--at", metavar="TIME", help="What is allowed then, if nobody acts; only what happens up to then.")
@connection_options
def command(*, at: str | None, deployment: str, rpc_url: str, as_json: bool) -> None:
    """List what becomes possible or ends by itself, soonest first."""
    moment = None if at is None else parse_time(at, what="--at")
    governed = connect(rpc_url, deployment).governed()
    if moment is not None and moment < governed.at:
        raise InputError(f"--at: want a time after {show_time(governed.at)}; `history` tells the past")
    entries = calendar(upcoming(governed), since=governed.at, until=moment)
    facts: dict[str, object] = {
        "time": governed.at.isoformat(),
        "entries": [{"at": entry.at.isoformat(), "sentence": entry.sentence} for entry in entries],
    }
    lines = [f"{show_time(entry.at)}  {entry.sentence}" for entry in entries] or ["nothing is due"]
    if moment is not None:
        allowed = allowed_lines(governed, moment)
        facts |= {"at": moment.isoformat(), "allowed": allowed}
        lines += [f"allowed at {show_time(moment)}, if nobody acts:", *(f"  {line}" for line in allowed or ["nothing"])]
    answer(as_json, facts, lines)
