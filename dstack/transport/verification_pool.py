"""Verifying quotes in worker processes.

The quote library holds the interpreter's lock for half a millisecond a quote: threads do not help, and an event loop
that verifies by itself stands still for everybody else. Each worker keeps what it has checked once per content.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from types import TracebackType
from typing import Self

from dstack.attestation.collateral import Collateral
from dstack.attestation.content_cache import DEFAULT_CAPACITY, ContentCache
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import ConfigError, UnavailableError

DEFAULT_WORKERS = 2
DEFAULT_WAITING = 1024
TIMEOUT_SECONDS = 30.0
_CLOSED = "verification: the pool is closed"


@dataclass(frozen=True, slots=True)
class _Trust:
    """What a worker verifies against, whoever asks."""

    roots: TrustedRoots
    policy: VerificationPolicy
    cache: ContentCache


class VerificationPool:
    """Verifies as `verify_quote` does, with the same results and errors, elsewhere.

    It may be shared by threads and event loops. Close it, or use it as a context: its workers end with it.

    Args:
        roots: The only certificates allowed to end a chain.
        policy: What is accepted among genuine quotes.
        workers: Processes.
        waiting: Most quotes that may be under way or wait; one more is turned away.
        cache_capacity: Most contents that each worker remembers.
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
        self._workers = workers
        self._waiting = waiting
        self._places = threading.BoundedSemaphore(waiting)
        self._lock = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what waits is turned away."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)

    def verify(
        self, raw: bytes, collateral: Collateral, *, at: datetime, timeout: float = TIMEOUT_SECONDS
    ) -> VerifiedQuote:
        """Verify a quote, and wait for the answer.

        Raises:
            InputError: As `verify_quote`.
            QuoteUntrustedError: As `verify_quote`.
            UnavailableError: Too many quotes wait, the workers died, or took too long.
        """
        executor, future = self._submit(raw, collateral, at)
        try:
            return future.result(timeout)
        except TimeoutError as exc:
            raise UnavailableError(f"verification: no answer within {timeout:g} seconds") from exc
        except CancelledError as exc:
            raise UnavailableError(_CLOSED) from exc
        except BrokenProcessPool as exc:
            raise self._broken(executor) from exc

    async def verify_async(
        self, raw: bytes, collateral: Collateral, *, at: datetime, timeout: float = TIMEOUT_SECONDS
    ) -> VerifiedQuote:
        """As `verify`, while the event loop goes on."""
        executor, future = self._submit(raw, collateral, at)
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError as exc:
            raise UnavailableError(f"verification: no answer within {timeout:g} seconds") from exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not the caller was cancelled, but what it waits for.
            raise UnavailableError(_CLOSED) from exc
        except BrokenProcessPool as exc:
            raise self._broken(executor) from exc

    def worker_ids(self) -> frozenset[int]:
        """Process ids of the workers that run; empty before the first quote."""
        with self._lock:
            return frozenset(self._executor._processes or () if self._executor else ())

    def _submit(
        self, raw: bytes, collateral: Collateral, at: datetime
    ) -> tuple[ProcessPoolExecutor, Future[VerifiedQuote]]:
        """Hand a quote to the workers; returns also which workers these are."""
        executor = self._running()
        if not self._places.acquire(blocking=False):
            raise UnavailableError(f"verification: {self._waiting} quotes are waiting already")
        try:
            future = executor.submit(_verify, raw, collateral, at)
        except BrokenProcessPool as exc:
            self._places.release()
            raise self._broken(executor) from exc
        except BaseException as exc:
            self._places.release()
            if isinstance(exc, RuntimeError):
                raise UnavailableError(_CLOSED) from exc
            raise
        future.add_done_callback(lambda _: self._places.release())
        return executor, future

    def _running(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._closed:
                raise UnavailableError(_CLOSED)
            if self._executor is None:
                # Not forked: this process may have threads, and secrets that a worker has no use for.
                self._executor = ProcessPoolExecutor(
                    self._workers, get_context("spawn"), initializer=_start, initargs=self._settings
                )
            return self._executor

    def _broken(self, executor: ProcessPoolExecutor) -> UnavailableError:
        """Forget workers of which one died; the next quote starts new ones.

        Everybody who waited for them comes here, while others may wait for the new ones already.
        """
        with self._lock:
            if self._executor is executor:
                self._executor = None
        executor.shutdown(wait=False, cancel_futures=True)
        return UnavailableError("verification: a worker process died")


_trust: _Trust | None = None


def _start(roots: TrustedRoots, policy: VerificationPolicy, cache_capacity: int) -> None:
    """Prepare a worker. Whoever started it ends it, so it does not listen to the terminal."""
    global _trust
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _trust = _Trust(roots, policy, ContentCache(cache_capacity))


def _verify(raw: bytes, collateral: Collateral, at: datetime) -> VerifiedQuote:
    """Verify in a worker."""
    if _trust is None:
        raise UnavailableError(f"verification: process {os.getpid()} is no worker")
    return verify_quote(raw, collateral, roots=_trust.roots, at=at, policy=_trust.policy, cache=_trust.cache)
