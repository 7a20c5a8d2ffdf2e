"""Work that strangers can ask for and that takes long: one at a time, a few wait, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from dstack.errors import ImageUnavailableError

WAITING = 8
WAIT_SECONDS = 90.0
MOST_KEPT = 256

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


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


class KeptInTurn(Generic[Key, Value]):
    """What is worked out once for each key, in turn; strangers choose the keys, so only the last `MOST_KEPT` are kept.

    Whoever asks for what is kept waits for nobody.
    """

    def __init__(self, what: str) -> None:
        """Take what is worked out; for the error."""
        self._turns = Turns(what)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """What belongs to *key*, by *make* where it is not kept. What *make* raises is not kept.

        Raises:
            ImageUnavailableError: As `Turns.turn`.
        """
        if (known := self._known(key)) is not None:
            return known
        with self._turns.turn():
            if (known := self._known(key)) is not None:
                return known
            made = make()
            with self._lock:
                self._kept[key] = made
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
            return made

    def _known(self, key: Key) -> Value | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)
