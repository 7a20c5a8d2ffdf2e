"""Who asks the same thing at the same time shares one answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class SingleFlight:
    """Runs one work for each key at a time; whoever comes while it runs waits for its outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, Future[Any]] = {}

    def run(self, key: Hashable, work: Callable[[], Result]) -> Result:
        """The result of *work*, or of the same work that somebody else has begun.

        Raises:
            Exception: What *work* raised.
        """
        with self._lock:
            outcome = self._running.get(key)
            first = outcome is None
            if outcome is None:
                outcome = self._running[key] = Future()
        if first:
            self._carry_out(key, outcome, work)
        result: Result = outcome.result()
        return result

    def _carry_out(self, key: Hashable, outcome: Future[Any], work: Callable[[], object]) -> None:
        try:
            outcome.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - it is passed on to everyone who waits
            outcome.set_exception(exc)
        finally:
            with self._lock:
                del self._running[key]
