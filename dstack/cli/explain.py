"""`dstack explain`: where two measurements part, register by register, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from dstack.cli.printable import printable
from dstack.cli.subjects import read_subject
from dstack.errors import InputError
from dstack.measurement.difference import Finding, Outcome, explain

_EXAMPLES = """\b
Examples:
  dstack measure dstack-0.5.7/ --vm-config vm.json --acpi own-qemu --json > ours.json
  dstack explain ours.json get-quote.json
  dstack explain yesterday.json today.json --json
  dstack explain /sys/firmware/acpi/tables/data/CCEL event-log.json

A and B may each be an event log (JSON or CCEL), a quote, an answer of GetQuote or Info, an attestation blob, or what
`dstack measure --json` wrote. Exit 1 if anything differs, 3 if something could not be compared."""


@click.command(name="explain", epilog=_EXAMPLES)
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(context: click.Context, *, a: str, b: str, as_json: bool) -> None:
    """Say of each register whether A and B agree, and otherwise name the first event that differs."""
    if a == b == "-":
        raise InputError("only one of the two can be standard input")
    findings = explain(read_subject(a).side, read_subject(b).side)
    if as_json:
        click.echo(json.dumps([_facts(finding) for finding in findings]))
    else:
        for finding in findings:
            _print(finding, a, b)
        if not findings:
            click.echo("not comparable: neither of the two has a register or an event")
    context.exit(_exit_code(findings))


def _exit_code(findings: Sequence[Finding]) -> int:
    outcomes = {finding.outcome for finding in findings}
    if Outcome.DIFFERENT in outcomes:
        return 1
    return 0 if outcomes == {Outcome.EQUAL} else 3


def _facts(finding: Finding) -> dict[str, object]:
    return {
        "register": finding.register,
        "outcome": finding.outcome.value,
        "what": finding.what,
        "a": finding.left,
        "b": finding.right,
        "depends_on": [each.value for each in finding.depends_on],
        "look_at": finding.look_at,
    }


def _print(finding: Finding, a: str, b: str) -> None:
    if finding.outcome is Outcome.EQUAL:
        click.echo(f"{finding.register:15} equal")
        return
    click.echo(printable(f"{finding.register:15} {finding.outcome.value}: {finding.what}"))
    rows = (
        (a, finding.left),
        (b, finding.right),
        ("depends on", ", ".join(each.value for each in finding.depends_on)),
        ("look at", finding.look_at),
    )
    width = min(max(len(label) for label, _ in rows), 40)
    for label, text in rows:
        if text:
            click.echo(printable(f"{'':15} {label[-40:]:{width}}  {text}"))
