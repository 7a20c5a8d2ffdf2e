"""Work that strangers can ask for and that takes long: one at a time, a few wait, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dstack.errors import ImageUnavailableError

WAITING = 8
WAIT_SECONDS = 90.0


class Turns:
    """Threads that would wait here beyond that are needed to answer others: they are told to come again."""

    def __init__(self, what: str, *, waiting: int = WAITING, seconds: float = WAIT_SECONDS) -> None:
        """Take the limits.

        Args:
            what: Is done here; for the error.
            waiting: How many may wait.
            seconds: How long each of them may.
        """
        self._what = what
        self._seconds = seconds
        self._places = threading.BoundedSemaphore(waiting + 1)
        self._turn = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether whoever comes now is turned away."""
        if free := self._places.acquire(blocking=False):
            self._places.release()
        return not free

    @contextmanager
    def turn(self) -> Iterator[None]:
        """For the length of a `with` block nobody else is at it.

        Raises:
            ImageUnavailableError: Too many wait already, or it took too long.
        """
        if not self._places.acquire(blocking=False):
            raise ImageUnavailableError(f"{self._what}: too many wait already, try again later")
        try:
            if not self._turn.acquire(timeout=self._seconds):
                raise ImageUnavailableError(f"{self._what}: no turn within {self._seconds:g} s, try again later")
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()
