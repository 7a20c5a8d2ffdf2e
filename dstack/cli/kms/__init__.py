"""`dstack kms`: what an operator or auditor does at a KMS."""

from __future__ import annotations

import click

from dstack.cli.lazy import LazyGroup

_SUMMARIES = {
    "decisions": "read and verify the signed log of decisions",
    "doctor": "what is wrong around a KMS, and what to do about it",
}


@click.group(
    name="kms",
    cls=LazyGroup,
    modules={name: (f"dstack.cli.kms.{name}", summary) for name, summary in _SUMMARIES.items()},
)
def command() -> None:
    """Look after a KMS: its settings, its surroundings, its decisions."""
