"""Writing several chunks at once while the next ones come: a disk takes few large pieces faster than many small."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from dstack.keys.sealing_stream import CHUNK
from replicator.storage import aligned_buffer

TOGETHER = 4
"""Chunks that are written at once."""

_BUFFERS = 2
MEMORY = _BUFFERS * TOGETHER * CHUNK
"""Bytes that one of these takes at most."""


class WriteBehind:
    """Two buffers: one is filled, while a thread writes the other. For a `with` block, whose end writes the rest.

    Args:
        write: Given whole chunks in order, as many as are there; what it raises is raised by `place` or at the end.
    """

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write
        self._buffers = [aligned_buffer(TOGETHER * CHUNK) for _ in range(_BUFFERS)]
        self._filled = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chunks")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Also where the next chunk did not come: what came whole is written."""
        with self._thread:
            self._pass_on()
            self._wait()

    def place(self, size: int) -> memoryview:
        """Where the next chunk goes, of *size* bytes; it is not there before `add`."""
        if self._filled + size > TOGETHER * CHUNK:
            self._pass_on()
        return self._buffers[0][self._filled : self._filled + size]

    def add(self, size: int) -> None:
        """The chunk is in its place."""
        self._filled += size

    def _pass_on(self) -> None:
        self._wait()
        if self._filled:
            self._writing = self._thread.submit(self._write, self._buffers[0][: self._filled])
            self._buffers.reverse()
            self._filled = 0

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except BaseException:
            self._filled = 0  # what comes after a piece that is missing is written no more
            raise
