"""`dstack replay`: compute RTMR0 to RTMR3 from an event log, and compare them with a quote."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from dstack.attestation.quote import MAX_PADDING, MAX_QUOTE, TdReport, parse_quote
from dstack.cli.files import read_input
from dstack.errors import EventLogMalformedError, QuoteMalformedError
from dstack.measurement.event_log import Event, parse_event_log, replay_event_log
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Register, bytes_from_hex

_ANSWER_LIMIT = 4 * 1024 * 1024
_EXAMPLES = """\b
Examples:
  dstack replay event-log.json
  dstack replay event-log.json --quote quote.bin
  curl -s --unix-socket /var/run/dstack.sock -d '{"report_data":"00"}' http://x/GetQuote | dstack replay - --json"""


@click.command(name="replay", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--quote", metavar="FILE", help="Compare with this quote, bytes or hexadecimal, instead of FILE's own.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(context: click.Context, *, file: str, quote: str | None, as_json: bool) -> None:
    """Replay FILE (- for standard input): an event log, or a GetQuote answer with `event_log` and `quote`.

    With a quote, exit 1 if a register differs. The quote's signature is not verified: that is `dstack verify`.
    """
    events, enclosed = _log_and_quote(read_input(file, limit=_ANSWER_LIMIT))
    if quote is not None:
        enclosed = _quote_bytes(read_input(quote, limit=2 * (MAX_QUOTE + MAX_PADDING)))
    replayed = replay_event_log(events)
    quoted = None if enclosed is None else _registers(enclosed)
    if as_json:
        click.echo(json.dumps(_facts(events, replayed, quoted)))
    else:
        _print(events, replayed, quoted)
    if quoted not in (None, replayed):
        context.exit(1)


def _log_and_quote(raw: bytes) -> tuple[tuple[Event, ...], bytes | None]:
    if raw.lstrip().startswith(b"["):
        return parse_event_log(raw), None
    value = parse_json(raw, what="GetQuote answer", limit=_ANSWER_LIMIT, error=EventLogMalformedError)
    answer = Members.of(value, what="GetQuote answer", error=EventLogMalformedError)
    quote = answer.hexadecimal("quote") if answer.has("quote") else None
    return parse_event_log(answer.text("event_log")), quote


def _quote_bytes(content: bytes) -> bytes:
    text = content.strip()
    return bytes_from_hex(text.decode(), what="quote") if text.isalnum() and text.isascii() else content


def _registers(quote: bytes) -> dict[int, Register]:
    body = parse_quote(quote).body
    if not isinstance(body, TdReport):
        raise QuoteMalformedError("quote: want a TDX quote, got one of SGX")
    return {0: body.rtmr0, 1: body.rtmr1, 2: body.rtmr2, 3: body.rtmr3}


def _disagreeing(events: Sequence[Event]) -> list[str]:
    """Name the runtime events whose logged digest is not that of their content; the content counts."""
    return [event.name for event in events if event.digest and event.digest != event.extended]


def _facts(
    events: Sequence[Event], replayed: dict[int, Register], quoted: dict[int, Register] | None
) -> dict[str, object]:
    facts: dict[str, object] = {
        **{f"rtmr{imr}": register.hex() for imr, register in replayed.items()},
        "runtime_events": [
            {"event": event.name, "payload": event.payload.hex()} for event in events if event.runtime is not None
        ],
        "digest_not_of_content": _disagreeing(events),
    }
    if quoted is not None:
        facts["equal"] = {f"rtmr{imr}": quoted[imr] == register for imr, register in replayed.items()}
        facts["all_equal"] = quoted == replayed
    return facts


def _print(events: Sequence[Event], replayed: dict[int, Register], quoted: dict[int, Register] | None) -> None:
    for name in _disagreeing(events):
        click.echo(
            f"warning: event {name[:80]!r}: the log's digest is not that of its content; the content counts", err=True
        )
    for imr, register in replayed.items():
        click.echo(f"RTMR{imr} {register.hex()}{_verdict(imr, register, quoted)}")


def _verdict(imr: int, register: Register, quoted: dict[int, Register] | None) -> str:
    if quoted is None:
        return ""
    return " equal" if quoted[imr] == register else f" DIFFERENT: the quote has {quoted[imr].hex()}"
