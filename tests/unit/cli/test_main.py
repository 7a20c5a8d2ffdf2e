"""The frame of `dstack`: sentences and exit codes instead of tracebacks, and help that shows how."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from dstack.cli.main import COMMANDS


def dstack(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it as a program."""
    command = [sys.executable, "-m", "dstack.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command() -> None:
    """`dstack -h` lists each command with its summary."""
    done = dstack("-h")

    assert done.returncode == 0
    assert [f"  {name}" in done.stdout and summary in done.stdout for name, (_, summary) in COMMANDS.items()] == [
        True
    ] * len(COMMANDS)


@pytest.mark.parametrize("arguments", [("-h",), ("replay", "absent.json", "--json")], ids=["answer", "error"])
def test_an_answer_that_cannot_be_written_is_no_verdict(arguments: Sequence[str]) -> None:
    """On a full disk: one sentence and exit 3, never the 1 of a refusal or a traceback."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dstack.cli", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (
        3,
        "dstack: standard output: cannot be written: No space left on device\n",
    )


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that answers by itself, with its whole name."""
    for name in sorted(set(COMMANDS) - {"demo"}):
        command = importlib.import_module(COMMANDS[name][0]).command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for inner in command.list_commands(context):
                found = command.get_command(context, inner)
                assert found is not None
                yield f"{name} {inner}", found
        else:
            yield name, command


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_command_has_examples_and_json(name: str, command: click.Command) -> None:
    """A command shows how to call it, and can answer a machine."""
    assert f"dstack {name} " in (command.epilog or "")
    assert "--json" in [option for parameter in command.params for option in parameter.opts]


def test_the_demo_explains_itself() -> None:
    """Its help comes from the program that it starts."""
    done = dstack("demo", "-h")

    assert done.returncode == 0
    assert "--compose FILE" in done.stdout
    assert "--json" in done.stdout


def test_an_unknown_command_is_bad_input() -> None:
    """One sentence, exit code 2, no traceback."""
    done = dstack("explode")

    assert (done.returncode, done.stdout, done.stderr) == (2, "", "dstack: No such command 'explode'.\n")


def test_an_error_cannot_steer_a_terminal() -> None:
    """What somebody else wrote is told without its control characters."""
    done = dstack("replay", "no\x1b[2K\rfile")

    assert (done.returncode, done.stderr) == (2, "dstack: no?[2K?file: cannot be read: No such file or directory\n")


def test_an_error_can_be_read_by_a_machine(tmp_path: Path) -> None:
    """With --json the error is an object on standard output."""
    missing = tmp_path / "missing.json"

    done = dstack("compose-hash", str(missing), "--json")

    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout) == {
        "error": f"{missing}: cannot be read: No such file or directory",
        "kind": "InputError",
    }


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    """`dstack ... | head -0` ends without a traceback."""
    compose = tmp_path / "docker-compose.yaml"
    compose.write_text(f"services: {{web: {{image: 'nginx@sha256:{'0' * 64}'}}}}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "dstack.cli", "compose", str(compose)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()

    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=30), errors) == (141, b"")
