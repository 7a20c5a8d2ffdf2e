"""`dstack demo`: start the local world of `dstack.devnet` as a program of its own."""

from __future__ import annotations

import os
import sys

import click


@click.command(
    name="demo",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    epilog="Example: dstack demo --compose docker-compose.yaml --json",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Chain-gated key release and key hand-over on your own docker-compose file."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "dstack.devnet", *arguments])
