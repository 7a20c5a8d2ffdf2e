"""`dstack replay`: compute RTMR0 to RTMR3 from an event log, and compare them with a quote."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from dstack.cli.subjects import Subject, read_quote, read_subject, with_quote
from dstack.errors import InputError
from dstack.measurement.event_log import Event, replay_event_log
from dstack.values import Register

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
    """Replay FILE (- for standard input): an event log, an answer of GetQuote or Info, or an attestation blob.

    With a quote, exit 1 if a register differs. The quote's signature is not verified: that is `dstack verify`.
    """
    subject = read_subject(file)
    events = subject.events
    if events is None:
        raise InputError(f"{file}: it has no event log")
    if quote is not None:
        subject = with_quote(subject, read_quote(quote))
    replayed = replay_event_log(events)
    quoted = _quoted(subject)
    if as_json:
        click.echo(json.dumps(_facts(events, replayed, quoted)))
    else:
        _print(events, replayed, quoted)
    if quoted not in (None, replayed):
        context.exit(1)


def _quoted(subject: Subject) -> dict[int, Register] | None:
    """RTMR0 to RTMR3 as the quote, or the guest's own info, states them."""
    if subject.registers is None:
        return None
    stated = {imr: subject.registers[f"rtmr{imr}"] for imr in range(4) if f"rtmr{imr}" in subject.registers}
    if len(stated) != 4:
        raise InputError(f"{subject.name}: want all of RTMR0 to RTMR3 beside the log, got {len(stated)} of them")
    return stated


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
