"""docs/auditors.md: its commands, run in one shell as they stand, and its outputs, compared with the real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.conftest import DemoRun

SECONDS = 240
# What the page begins with; the test brings results of the demo, and its own Python.
DONE_ALREADY = ("make demo", ". .venv/bin/activate")
_BLOCK = re.compile(r"```(sh|text)\n(.*?)```", re.DOTALL)
_EXIT = re.compile(r"# exit (\d+)$")


@dataclass(frozen=True)
class Passage:
    """Commands of the page, and the lines that it shows of what they say."""

    commands: tuple[str, ...]
    shown: tuple[str, ...]


def passages(page: str) -> list[Passage]:
    """The page's blocks: each of commands, with the block of outputs behind it if there is one."""
    blocks = [(kind, tuple(body.splitlines())) for kind, body in _BLOCK.findall(page)]
    return [
        Passage(lines, blocks[at + 1][1] if blocks[at + 1 : at + 2] and blocks[at + 1][0] == "text" else ())
        for at, (kind, lines) in enumerate(blocks)
        if kind == "sh"
    ]


def run_in_one_shell(commands: list[str], folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of each command; variables, functions and jobs of one are there for the next."""
    script = "".join(
        f"{command}\necho $? > {folder}/code\nprintf '\\0%s\\0' $(cat {folder}/code)\n" for command in commands
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    *parts, _ = done.stdout.split("\0")
    return [(int(code), said) for said, code in zip(parts[::2], parts[1::2], strict=True)]


def missing_lines(shown: tuple[str, ...], said: str) -> list[str]:
    """The shown lines that do not occur in *said*, in their order; … stands for anything."""
    lines, absent = iter(said.splitlines()), []
    for line in shown:
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        if not any(pattern.fullmatch(other) for other in lines):
            absent.append(line)
            break
    return absent


def test_the_commands_of_the_auditors_page_run_as_written(demo: DemoRun, tmp_path: Path, project_root: Path) -> None:
    """From what an operator sends to each verdict: every exit code and every line shown is the real one."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    shutil.copytree(demo.folder, tmp_path / "demo-results")
    page = passages((project_root / "docs" / "auditors.md").read_text())
    commands = [line for passage in page for line in passage.commands if line not in DONE_ALREADY]

    results = iter(run_in_one_shell(commands, tmp_path))

    for passage in page:
        said = ""
        for command in passage.commands:
            if command in DONE_ALREADY:
                continue
            expected = _EXIT.search(command)
            code, output = next(results)
            assert code == (int(expected[1]) if expected else 0), (command, output)
            said += output
        assert missing_lines(passage.shown, said) == [], said


def test_a_line_that_is_not_said_is_missed() -> None:
    """The comparison can fail: by an absent line, and by two in the wrong order."""
    said = "one 1\ntwo 2\n"

    assert missing_lines(("one …", "two 2"), said) == []
    assert missing_lines(("two 2", "one …"), said) == ["one …"]
    assert missing_lines(("three",), said) == ["three"]
