"""Replicators that are killed at every write: neither what was held nor what is handed over is lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dstack.keys.sealing_stream import CHUNK
from replicator.write_behind import TOGETHER
from tests.integration.crash_driver import CHANGED, LARGE
from tests.worlds import SECRET

DRIVER = Path(__file__).parent / "crash_driver.py"


def crashes(folder: Path, scenario: str) -> list[dict[str, Any]]:
    """What was left after a kill at each step, the last line being that of an undisturbed run."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), scenario], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines


def test_a_new_node_killed_at_any_write_has_nothing_or_all(tmp_path: Path) -> None:
    """The content is there with its custody and receipt, or not at all; and the handover can always be done anew."""
    lines = crashes(tmp_path, "fresh")

    assert len(lines) > 12
    for line in lines:
        empty = (line["content"], line["depth"], line["fits"], line["receipts"])
        assert empty in [(None, None, False, []), (SECRET.decode(), 1, True, ["received"])], line
        assert line["strays"] == []
        assert line["recovered"] == SECRET.decode()
    assert [line["content"] is not None for line in lines] == sorted(line["content"] is not None for line in lines)
    assert lines[-1]["content"] == SECRET.decode()


def test_a_node_killed_while_it_replaces_has_the_old_or_the_new(tmp_path: Path) -> None:
    """The previous content stays, with its own custody, until the new one is there with its own."""
    lines = crashes(tmp_path, "replacing")

    old, new = (SECRET.decode(), 0, ["genesis", "sent"]), (CHANGED.decode(), 2, ["genesis", "received", "sent"])
    for line in lines:
        assert (line["content"], line["depth"], line["receipts"]) in [old, new], line
        assert line["strays"] == []
        assert line["recovered"] == CHANGED.decode()
    assert {line["content"] for line in lines} == {SECRET.decode(), CHANGED.decode()}


def test_an_old_node_killed_while_it_answers_keeps_what_it_holds(tmp_path: Path) -> None:
    """No moment of sealing touches the secure file; at most a receipt more is there."""
    lines = crashes(tmp_path, "answering")

    for line in lines:
        assert (line["content"], line["depth"]) == (SECRET.decode(), 0)
        assert line["receipts"] in [["genesis"], ["genesis", "sent"]]
        assert line["recovered"] == SECRET.decode()


def test_a_node_killed_inside_a_write_keeps_what_it_held(tmp_path: Path) -> None:
    """At a socket, in the middle of writes and before the disk is synced: the old content stays with its custody.

    Nothing half written is left after the start, and the same content then arrives whole by a new request.
    """
    piece = TOGETHER * CHUNK
    last = len(LARGE) // piece * piece
    written = {  # offsets of writes, or the end before it is synced; and how many bytes of the write are then there
        piece: piece // 2,
        3 * piece: piece // 2,
        last - piece: piece // 2,
        last: (len(LARGE) - last) // 2,
        len(LARGE): len(LARGE),
    }
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(tmp_path), "streaming", *map(str, written)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {
            "at": at,
            "written": size,
            "content": SECRET.decode(),
            "depth": 0,
            "fits": False,
            "receipts": ["genesis", "sent"],
            "strays": [],
            "recovered": hashlib.sha256(LARGE).hexdigest(),
        }
        for at, size in written.items()
    ]


@pytest.mark.parametrize("scenario", ["fresh"])
def test_the_driver_notices_a_write_that_is_not_atomic(tmp_path: Path, scenario: str) -> None:
    """Some kill happens before the content is in place, and some after: the moments in between are covered."""
    kinds = {line["content"] for line in crashes(tmp_path, scenario) if not line["done"]}

    assert kinds == {None, SECRET.decode()}
