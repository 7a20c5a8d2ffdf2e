"""Chunks written behind: some at once, and nothing counts behind what the disk refused."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from dstack.errors import KeystoreError
from dstack.keys.sealing_stream import CHUNK
from replicator.write_behind import MEMORY, TOGETHER, WriteBehind

PIECE = TOGETHER * CHUNK
START = 3 * CHUNK


class _Disk:
    """Keeps the pieces it was given, by their offsets; refuses the one at an offset, if told so."""

    def __init__(self, *, refuses: int | None = None) -> None:
        self.pieces: dict[int, bytes] = {}
        self.reached = [START]
        self._refuses = refuses

    def write(self, content: memoryview, offset: int) -> None:
        if offset == self._refuses:
            raise KeystoreError("secure file: cannot be written: No space left on device")
        self.pieces[offset] = bytes(content)

    def written(self, offset: int) -> None:
        self.reached.append(offset)


def _chunk(number: int, size: int = CHUNK) -> bytes:
    return bytes([number]) * size


def _behind(disk: _Disk) -> WriteBehind:
    return WriteBehind(disk.write, disk.written, offset=START)


def _add(behind: WriteBehind, content: bytes) -> None:
    behind.place(len(content))[:] = content
    behind.add(len(content))


def _write(disk: _Disk, chunks: list[bytes]) -> None:
    with _behind(disk) as behind:
        for content in chunks:
            _add(behind, content)


@pytest.mark.parametrize(
    ("whole", "rest", "sizes"),
    [
        (0, 0, []),
        (0, 5, [5]),
        (TOGETHER, 0, [PIECE]),
        (TOGETHER, 5, [PIECE, 5]),
        (9 * TOGETHER + 1, 7, [*[PIECE] * 9, CHUNK + 7]),
    ],
)
def test_all_of_it_where_it_belongs(whole: int, rest: int, sizes: list[int]) -> None:
    """What is written is what was added, in pieces of some whole chunks and at the end the rest."""
    disk = _Disk()
    chunks = [*map(_chunk, range(whole)), *([_chunk(99, rest)] if rest else [])]
    _write(disk, chunks)
    offsets = [START + sum(sizes[:number]) for number in range(len(sizes) + 1)]
    assert sorted(disk.pieces) == offsets[:-1]
    assert [len(disk.pieces[offset]) for offset in offsets[:-1]] == sizes
    assert b"".join(disk.pieces[offset] for offset in offsets[:-1]) == b"".join(chunks)
    assert disk.reached == offsets


def test_what_came_whole_is_written_where_the_next_does_not_come() -> None:
    """A chunk whose place was taken, but that never came, is not written; those before it are."""
    disk = _Disk()

    def receive() -> None:
        with _behind(disk) as behind:
            _add(behind, _chunk(1))
            behind.place(CHUNK)[:] = _chunk(2)
            raise TimeoutError("late")

    with pytest.raises(TimeoutError, match="late"):
        receive()
    assert disk.pieces == {START: _chunk(1)}
    assert disk.reached == [START, START + CHUNK]


@pytest.mark.parametrize("refused", range(9))
def test_nothing_counts_behind_what_was_refused(refused: int) -> None:
    """Also where a later piece was written before that was known."""
    disk = _Disk(refuses=START + refused * PIECE)
    chunks = [_chunk(number) for number in range(9 * TOGETHER)]
    with pytest.raises(KeystoreError, match=r"secure file: cannot be written: No space left on device"):
        _write(disk, chunks)
    assert disk.reached == [START + number * PIECE for number in range(refused + 1)]
    for offset, content in disk.pieces.items():
        first = (offset - START) // CHUNK
        assert content == b"".join(chunks[first : first + TOGETHER])


def test_a_piece_counts_when_all_before_it_are_written() -> None:
    """The second may be written first: two are written at once."""
    second, reached = threading.Event(), []

    def write(_content: memoryview, offset: int) -> None:
        if offset == 0:
            assert second.wait(20)
        else:
            second.set()

    def written(offset: int) -> None:
        assert second.is_set()
        reached.append(offset)

    with WriteBehind(write, written, offset=0) as behind:
        for number in range(2 * TOGETHER):
            _add(behind, _chunk(number))
    assert reached == [PIECE, 2 * PIECE]


def test_memory_is_taken_once_and_used_again() -> None:
    """A slow disk makes whoever adds wait, rather than have more memory."""
    places = set()
    with _behind(_Disk()) as behind:
        for number in range(20 * TOGETHER):
            place = behind.place(CHUNK)
            place[:] = _chunk(number)
            places.add(id(place.obj))
            behind.add(CHUNK)
    assert len(places) * PIECE == MEMORY


def test_no_thread_is_left() -> None:
    """Whichever way it ends."""
    before = threading.active_count()
    for refuses in (None, START):
        with suppress(KeystoreError):
            _write(_Disk(refuses=refuses), [_chunk(1)])
    assert threading.active_count() == before
