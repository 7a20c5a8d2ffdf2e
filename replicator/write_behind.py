"""Writing several chunks at once while the next ones come: a disk takes large pieces, and two at once, faster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from dstack.keys.sealing_stream import CHUNK
from replicator.storage import aligned_buffer

TOGETHER = 2
"""Chunks of a piece."""

_AT_ONCE = 2
"""Pieces that are being written."""

_BUFFERS = _AT_ONCE + 2
MEMORY = _BUFFERS * TOGETHER * CHUNK
"""Bytes that one of these takes at most."""


class WriteBehind:
    """Buffers: one is filled, while threads write others. For a `with` block, whose end writes the rest.

    Args:
        write: Given whole chunks, as many as are there, and their offset; by several threads. What it raises is raised
            by `place` or at the end.
        written: Told the offset before which everything has been written; only ever a later one.
        offset: Of the first chunk.
    """

    def __init__(
        self, write: Callable[[memoryview, int], None], written: Callable[[int], None], *, offset: int
    ) -> None:
        self._write = write
        self._written = written
        self._offset = offset
        self._free = [aligned_buffer(TOGETHER * CHUNK) for _ in range(_BUFFERS)]
        self._filling = self._free.pop()
        self._filled = 0
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="chunks")
        self._writing: deque[tuple[Future[None], int, memoryview]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Also where the next chunk did not come: what came whole is written."""
        with self._threads:
            self._submit()
            while self._writing:
                self._take_back()

    def place(self, size: int) -> memoryview:
        """Where the next chunk goes, of *size* bytes; it is not there before `add`."""
        if self._filled + size > TOGETHER * CHUNK:
            self._submit()
            if not self._free:
                self._take_back()
            self._filling = self._free.pop()
        return self._filling[self._filled : self._filled + size]

    def add(self, size: int) -> None:
        """The chunk is in its place."""
        self._filled += size

    def _submit(self) -> None:
        if self._filled:
            writing = self._threads.submit(self._write, self._filling[: self._filled], self._offset)
            self._offset += self._filled
            self._writing.append((writing, self._offset, self._filling))
            self._filled = 0

    def _take_back(self) -> None:
        """Wait for the oldest piece."""
        writing, end, buffer = self._writing.popleft()
        try:
            writing.result()
        except BaseException:
            # Behind a piece that is missing nothing counts as written.
            self._writing.clear()
            self._filled = 0
            raise
        self._free.append(buffer)
        self._written(end)
