"""Verifying quotes in worker processes.

The quote library holds the interpreter's lock for half a millisecond a quote: threads do not help, and an event loop
that verifies by itself stands still for everybody else. Each worker keeps what it has checked once per content.

Whoever asks talks to a worker himself: nobody in between would have to be woken, and to wait for that same lock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import Self

from dstack.attestation.collateral import Collateral
from dstack.attestation.content_cache import DEFAULT_CAPACITY
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import VerifiedQuote
from dstack.errors import ConfigError, UnavailableError
from dstack.transport.verification_worker import END_SECONDS, VerificationWorker

DEFAULT_WORKERS = 2
DEFAULT_WAITING = 1024
TIMEOUT_SECONDS = 30.0
_CLOSED = "verification: the pool is closed"


class VerificationPool:
    """Verifies as `verify_quote` does, with the same results and errors, elsewhere.

    It may be shared by threads and event loops. Close it, or use it as a context: its workers end with it.

    Args:
        roots: The only certificates allowed to end a chain.
        policy: What is accepted among genuine quotes.
        workers: Processes.
        waiting: Most quotes that may be under way or wait; one more is turned away.
        cache_capacity: Most contents that each worker remembers.

    Raises:
        ConfigError: No worker, or no place.
    """

    def __init__(
        self,
        *,
        roots: TrustedRoots,
        policy: VerificationPolicy,
        workers: int = DEFAULT_WORKERS,
        waiting: int = DEFAULT_WAITING,
        cache_capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        if workers < 1 or waiting < 1:
            raise ConfigError(f"verification: want one or more workers and places, got {workers} and {waiting}")
        self._settings = (roots, policy, cache_capacity)
        self._most = workers
        self._waiting = waiting
        self._places = threading.BoundedSemaphore(waiting)
        # Whoever asks from an event loop waits in one of these threads.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="verification")
        self._changed = threading.Condition()
        self._workers: set[VerificationWorker] = set()
        self._idle: list[VerificationWorker] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what waits is turned away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            idle, self._idle = self._idle, []
        for worker in idle:
            self._end(worker, patience=END_SECONDS)
        with self._changed:
            # Those at work may say what they found; whoever asked them ends them.
            self._changed.wait_for(lambda: not self._workers, END_SECONDS)
            for worker in self._workers:
                worker.kill()
            self._changed.wait_for(lambda: not self._workers, END_SECONDS)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def verify(
        self, raw: bytes, collateral: Collateral, *, at: datetime, timeout: float = TIMEOUT_SECONDS
    ) -> VerifiedQuote:
        """Verify a quote, and wait for the answer, at most *timeout* seconds.

        Raises:
            InputError: As `verify_quote`.
            QuoteUntrustedError: As `verify_quote`.
            UnavailableError: Too many quotes wait, the worker died, or there was no answer in time.
        """
        self._take_place()
        try:
            return self._ask(raw, collateral, at, timeout)
        finally:
            self._places.release()

    async def verify_async(
        self, raw: bytes, collateral: Collateral, *, at: datetime, timeout: float = TIMEOUT_SECONDS
    ) -> VerifiedQuote:
        """As `verify`, while the event loop goes on."""
        self._take_place()
        try:
            future = self._threads.submit(self._ask, raw, collateral, at, timeout)
        except RuntimeError as exc:
            self._places.release()
            raise UnavailableError(_CLOSED) from exc
        future.add_done_callback(lambda _: self._places.release())
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError as exc:
            raise _late(timeout) from exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not the caller was cancelled, but what it waits for.
            raise UnavailableError(_CLOSED) from exc

    def worker_ids(self) -> frozenset[int]:
        """Process ids of the workers that run; empty before the first quote."""
        with self._changed:
            return frozenset(worker.pid for worker in self._workers)

    def _take_place(self) -> None:
        if self._closed:
            raise UnavailableError(_CLOSED)
        if not self._places.acquire(blocking=False):
            raise UnavailableError(f"verification: {self._waiting} quotes are waiting already")

    def _ask(self, raw: bytes, collateral: Collateral, at: datetime, timeout: float) -> VerifiedQuote:
        deadline = time.monotonic() + timeout
        worker = self._take_worker(timeout)
        try:
            answer = worker.ask(raw, collateral, at=at, deadline=deadline)
        except BaseException as exc:
            # It is dead, or nobody knows what it will say next; another one comes in its place.
            self._end(worker)
            if isinstance(exc, TimeoutError):
                raise _late(timeout) from exc
            if isinstance(exc, OSError):
                raise UnavailableError("verification: a worker process died") from exc
            raise
        self._give_back(worker)
        return answer()

    def _take_worker(self, timeout: float) -> VerificationWorker:
        """The one that was used last among those that are idle; those that are missing are started."""
        with self._changed:
            if not self._changed.wait_for(self._has_idle, timeout):
                raise _late(timeout)
            if self._closed:
                raise UnavailableError(_CLOSED)
            return self._idle.pop()

    def _has_idle(self) -> bool:
        while len(self._workers) < self._most and not self._closed:
            try:
                worker = VerificationWorker(*self._settings)
            except OSError as exc:
                raise UnavailableError(f"verification: no process can be started: {exc.strerror or exc}") from exc
            self._workers.add(worker)
            self._idle.append(worker)
        return self._closed or bool(self._idle)

    def _give_back(self, worker: VerificationWorker) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(worker)
                self._changed.notify()
                return
        self._end(worker, patience=END_SECONDS)

    def _end(self, worker: VerificationWorker, *, patience: float = 0.0) -> None:
        """By whoever has it; then it is none of ours any more."""
        worker.end(patience=patience)
        with self._changed:
            self._workers.discard(worker)
            self._changed.notify_all()


def _late(timeout: float) -> UnavailableError:
    return UnavailableError(f"verification: no answer within {timeout:g} seconds")
