"""`dstack kms doctor`: what is wrong around a KMS, and what to do about it."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import click

from kms.config import load_settings
from kms.doctor import Level, examine, exit_code

_SIGNS = {Level.OK: "ok     ", Level.WARNING: "warning", Level.WRONG: "WRONG  ", Level.UNKNOWN: "unknown"}
_EXAMPLES = """\b
Examples:
  dstack kms doctor -c kms.toml
  dstack kms doctor -c kms.toml --json

Exit codes: 0 nothing wrong (there may be warnings), 1 something is wrong, 2 the settings cannot be read,
3 something could not be asked. Nothing is changed, except that fetched collateral is kept."""


@click.command(name="doctor", epilog=_EXAMPLES)
@click.option(
    "-c", "--config", type=Path, default=Path("/etc/kms/kms.toml"), show_default=True, help="The KMS's settings."
)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(context: click.Context, *, config: Path, as_json: bool) -> None:
    """Look at a KMS's settings, keys, database, chain, clock, guest agent, collateral and permission."""
    # What it would say is among the findings.
    logging.getLogger().addHandler(logging.NullHandler())
    found = []
    for finding in examine(load_settings(config)):
        found.append(finding)
        if not as_json:
            click.echo(f"{_SIGNS[finding.level]}  {finding.name}: {finding.said}")
            if finding.fix and finding.level is not Level.OK:
                click.echo(f"           -> {finding.fix}")
    code = exit_code({finding.level for finding in found})
    counted = Counter(finding.level.value for finding in found)
    if as_json:
        findings = [{"name": one.name, "level": one.level.value, "said": one.said, "fix": one.fix} for one in found]
        click.echo(json.dumps({"findings": findings, "counts": dict(counted), "exit_code": code}))
    else:
        click.echo(", ".join(f"{count} {level}" for level, count in counted.items()))
    context.exit(code)
