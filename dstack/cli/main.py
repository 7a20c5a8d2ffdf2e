"""The frame of `dstack`: finds the sub-command, and turns errors into one sentence and an exit code.

Exit codes: 0 ok, 1 refused, 2 bad input, 3 could not ask (or could not write the answer), 130 interrupted, 141 the
reader of the answer went away.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

import click

from dstack.cli.lazy import LazyGroup
from dstack.cli.printable import printable
from dstack.errors import DstackError

INTERRUPTED = 130
# As a shell says of a program that SIGPIPE ended.
READER_GONE = 141

# Module of each sub-command, and what `dstack -h` says of it.
COMMANDS = {
    "collateral": ("dstack.cli.collateral", "fetch, show and check what a platform's maker says of it"),
    "compose": ("dstack.cli.compose", "docker-compose file to app-compose.json"),
    "compose-hash": ("dstack.cli.compose_hash", "compose hash and default app id of an app-compose.json"),
    "demo": ("dstack.cli.demo", "the whole story on your own docker-compose file"),
    "explain": ("dstack.cli.explain", "where two measurements, logs or quotes part, in words"),
    "govern": ("dstack.cli.govern", "propose, sign, execute, deny; who can do what, and when"),
    "handover": ("dstack.cli.handover", "a secure file from an old node to a new one"),
    "kms": ("dstack.cli.kms", "look after a KMS: its surroundings, its decisions"),
    "measure": ("dstack.cli.measure", "image, shape and app to registers; compared with a quote"),
    "quote": ("dstack.cli.quote", "every field of a quote by its name"),
    "replay": ("dstack.cli.replay", "event log to registers, compared with a quote"),
    "rtmr3": ("dstack.cli.rtmr3", "the RTMR3 that a machine with an app-compose.json must show"),
    "verify": ("dstack.cli.verify", "who signed evidence, and does it measure what it should"),
}


@click.group(cls=LazyGroup, modules=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def dstack() -> None:
    """Decide by smart contract which software may hold which keys; check it from a laptop.

    Exit codes: 0 ok, 1 refused, 2 bad input, 3 could not ask.
    """


def main() -> NoReturn:
    """Run `dstack` and exit."""
    run(dstack, prog_name="dstack")


def run(command: click.Command, *, prog_name: str) -> NoReturn:
    """Run *command* on this process's arguments, turn errors into a sentence and an exit code, and exit."""
    try:
        _run(command, prog_name)
    except OSError as exc:
        # What commands read they translate; what is left is their answer. Its rest must not be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr.write(f"dstack: {exc.filename or 'standard output'}: cannot be written: {exc.strerror or exc}\n")
        sys.exit(3)
    except SystemExit as exc:
        # click's own answer to a broken pipe is 1, which here means that something was refused.
        sys.exit(READER_GONE if isinstance(exc.__context__, BrokenPipeError) else exc.code)


def _run(command: click.Command, prog_name: str) -> NoReturn:
    arguments = sys.argv[1:]
    try:
        result = command.main(args=arguments, prog_name=prog_name, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        fail("interrupted", "Interrupted", INTERRUPTED, arguments)
    except click.ClickException as exc:
        fail(exc.format_message(), "UsageError", 2, arguments)
    except DstackError as exc:
        fail(str(exc), type(exc).__name__, exc.exit_code, arguments)
    sys.exit(result if isinstance(result, int) else 0)


def fail(sentence: str, kind: str, exit_code: int, arguments: list[str]) -> NoReturn:
    """Say why on standard error (as JSON on standard output with `--json`) and exit."""
    if "--json" in arguments:
        click.echo(json.dumps({"error": sentence, "kind": kind}))
    else:
        # It may quote what somebody else wrote.
        click.echo("\n".join(map(printable, f"dstack: {sentence}".split("\n"))), err=True)
    sys.exit(exit_code)
