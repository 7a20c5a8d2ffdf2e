"""Chunks written behind: in order, some at once, and nothing after what the disk refused."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from dstack.errors import KeystoreError
from dstack.keys.sealing_stream import CHUNK
from replicator.write_behind import TOGETHER, WriteBehind


class _Disk:
    """Keeps the pieces it was given; refuses from one of them on, if told so."""

    def __init__(self, *, refuses_from: int | None = None) -> None:
        self.pieces: list[bytes] = []
        self._refuses_from = refuses_from

    def write(self, content: memoryview) -> None:
        if self._refuses_from is not None and len(self.pieces) >= self._refuses_from:
            raise KeystoreError("secure file: cannot be written: No space left on device")
        self.pieces.append(bytes(content))


def _chunk(number: int, size: int = CHUNK) -> bytes:
    return bytes([number]) * size


def _add(behind: WriteBehind, content: bytes) -> None:
    behind.place(len(content))[:] = content
    behind.add(len(content))


def _write(disk: _Disk, chunks: list[bytes]) -> None:
    with WriteBehind(disk.write) as behind:
        for content in chunks:
            _add(behind, content)


@pytest.mark.parametrize(
    ("whole", "rest", "pieces"),
    [
        (0, 0, []),
        (0, 5, [0]),
        (TOGETHER, 0, [TOGETHER]),
        (TOGETHER, 5, [TOGETHER, 0]),
        (3 * TOGETHER + 1, 7, [TOGETHER, TOGETHER, TOGETHER, 1]),
    ],
)
def test_all_of_it_in_order(whole: int, rest: int, pieces: list[int]) -> None:
    """What is written is what was added, in pieces of some whole chunks and at the end the rest."""
    disk = _Disk()
    chunks = [*map(_chunk, range(whole)), *([_chunk(99, rest)] if rest else [])]
    _write(disk, chunks)
    assert b"".join(disk.pieces) == b"".join(chunks)
    assert [len(piece) // CHUNK for piece in disk.pieces] == pieces


def test_what_came_whole_is_written_where_the_next_does_not_come() -> None:
    """A chunk whose place was taken, but that never came, is not written; those before it are."""
    disk = _Disk()

    def receive() -> None:
        with WriteBehind(disk.write) as behind:
            _add(behind, _chunk(1))
            _add(behind, _chunk(2))
            behind.place(CHUNK)[:] = _chunk(3)
            raise TimeoutError("late")

    with pytest.raises(TimeoutError, match="late"):
        receive()
    assert disk.pieces == [_chunk(1) + _chunk(2)]


@pytest.mark.parametrize("refuses_from", [0, 1, 2, 3])
def test_nothing_is_written_after_what_was_refused(refuses_from: int) -> None:
    """Else it would lie in the place of what is missing."""
    disk = _Disk(refuses_from=refuses_from)
    chunks = [_chunk(number) for number in range(4 * TOGETHER)]
    with pytest.raises(KeystoreError, match=r"secure file: cannot be written: No space left on device"):
        _write(disk, chunks)
    assert b"".join(disk.pieces) == b"".join(chunks[: refuses_from * TOGETHER])


def test_no_thread_is_left() -> None:
    """Whichever way it ends."""
    before = threading.active_count()
    for refuses_from in (None, 0):
        with suppress(KeystoreError):
            _write(_Disk(refuses_from=refuses_from), [_chunk(1)])
    assert threading.active_count() == before
