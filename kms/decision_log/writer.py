"""Writing the log beside the requests: many decisions share one transaction, and a grant waits for its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from prometheus_client import CollectorRegistry, Counter

from dstack.errors import DecisionLogUnavailableError
from kms.decision_log.entry import CONTENT_LIMIT, canonical
from kms.decision_log.signing import DecisionSigner
from kms.decision_log.store import DecisionStore

QUEUE_LIMIT = 2000
BATCH_LIMIT = 200
WRITE_SECONDS = 10.0
PAUSE_SECONDS = 0.005
"""From one transaction to the next: a transaction costs more than what it writes, so under load it writes several."""

PRUNE_SECONDS = 3600.0
REFUSALS_AN_HOUR = 600
"""How many decisions are kept that gave nothing: of those with genuine evidence, and again of those without."""

METRICS = CollectorRegistry()
ENTRIES = Counter(
    "dstack_kms_decision_log_entries", "Decisions, by whether they were written.", ["outcome"], registry=METRICS
)

_log = logging.getLogger("kms")


@dataclass(frozen=True, slots=True)
class _Waiting:
    content: Mapping[str, object]
    written: Future[None] = field(default_factory=Future)


class _Hourly:
    """So many in an hour."""

    def __init__(self, most: int, now: Callable[[], float]) -> None:
        self._most, self._now = most, now
        self._since, self._count = now(), 0

    def take(self) -> bool:
        if self._now() - self._since >= PRUNE_SECONDS:
            self._since, self._count = self._now(), 0
        self._count += 1
        return self._count <= self._most


class DecisionLog:
    """Keeps decisions in a store; a `kms.decisions.Keeper`.

    A grant that could not be written is no grant. A refusal stands without its entry; the next entry that can be
    written says how many are missing before it. Whoever likes can have himself refused, so of refusals only
    `REFUSALS_AN_HOUR` are kept, and the next entry says how many were left out; standard output has them all.
    """

    def __init__(
        self,
        store: DecisionStore,
        signer: DecisionSigner,
        *,
        about: Callable[[], Mapping[str, object]],
        retention: timedelta,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to write.

        Args:
            store: Where to.
            signer: Signs each entry.
            about: Members of every entry: which chain and contract decide.
            retention: How long an entry is kept.
            now: Seconds, monotonic.
        """
        self._store = store
        self._signer = signer
        self._about = about
        self._retention = retention
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(QUEUE_LIMIT)
        self._missing = self._left_out = 0
        self._limits = {has_evidence: _Hourly(REFUSALS_AN_HOUR, now) for has_evidence in (True, False)}
        self._counting = threading.Lock()
        self._prune_at = self._written_at = 0.0
        self._busy = self._is_over = False
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end; not for longer than a grant may take."""
        self._is_over = True
        with suppress(queue.Full):
            self._queue.put(None, timeout=WRITE_SECONDS)
            self._thread.join(WRITE_SECONDS)

    def keep(self, content: Mapping[str, object], *, must: bool) -> None:
        """Keep a decision.

        Args:
            content: Its line.
            must: Return only when it is written.

        Raises:
            DecisionLogUnavailableError: It must be, and could not be within `WRITE_SECONDS`.
        """
        if not must and not self._has_room(content):
            return
        waiting = _Waiting({**content, **self._about()})
        try:
            self._queue.put(waiting, timeout=WRITE_SECONDS if must else 0)
        except queue.Full:
            self.lost(1)
            if must:
                raise DecisionLogUnavailableError("decision log: too many decisions wait to be written") from None
            return
        if must:
            try:
                waiting.written.result(WRITE_SECONDS)
            except FutureTimeoutError:
                raise DecisionLogUnavailableError(f"decision log: not written within {WRITE_SECONDS:.0f} s") from None

    def _has_room(self, content: Mapping[str, object]) -> bool:
        with self._counting:
            if self._limits["evidence" in content].take():
                return True
            self._left_out += 1
        ENTRIES.labels("left_out").inc()
        return False

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._write(batch)
            self._written_at, self._busy = time.monotonic(), len(batch) > 1
            if time.monotonic() >= self._prune_at:
                self._prune()

    def _next_batch(self) -> list[_Waiting] | None:
        """What waits; None at the end."""
        if self._is_over and self._queue.empty():
            return None
        first = self._queue.get()
        if self._busy or not self._queue.empty():
            time.sleep(max(0.0, self._written_at + PAUSE_SECONDS - time.monotonic()))
        batch = [first]
        while first is not None and len(batch) < BATCH_LIMIT and not self._queue.empty():
            batch.append(self._queue.get())
        found = [waiting for waiting in batch if waiting is not None]
        return found or None

    def _write(self, batch: list[_Waiting]) -> None:
        try:
            self._append([_bounded(waiting.content) for waiting in batch])
        except DecisionLogUnavailableError as exc:
            self._fail(batch, exc)
        except Exception as exc:  # noqa: BLE001 - a defect, or a database that may be mended: the next batch is tried
            _log.exception("decision log: a defect")
            self._fail(batch, DecisionLogUnavailableError(f"decision log: it cannot go on: {type(exc).__name__}"))
        else:
            ENTRIES.labels("written").inc(len(batch))
            for waiting in batch:
                waiting.written.set_result(None)

    def _append(self, contents: list[dict[str, object]]) -> None:
        missing, left_out = self._missing, self._left_out
        before = {"missing_before": missing, "left_out_before": left_out}
        contents[0] |= {name: count for name, count in before.items() if count}
        self._store.append(contents, self._signer)
        with self._counting:
            self._missing -= missing
            self._left_out -= left_out

    def _fail(self, batch: list[_Waiting], error: DecisionLogUnavailableError) -> None:
        self.lost(len(batch))
        _log.error("%s; grants wait until it can be written", error)
        for waiting in batch:
            waiting.written.set_exception(error)

    def _prune(self) -> None:
        """Every hour; the head is said too, so that it stands somewhere else than in the database."""
        self._prune_at = time.monotonic() + PRUNE_SECONDS
        now = datetime.now(UTC)
        try:
            head = self._store.head()
            _log.info("decision log: head %d:%s", head.seq, head.digest.hex())
            gone = self._store.prune(now - self._retention, self._signer, now)
        except DecisionLogUnavailableError as exc:
            _log.error("%s; nothing was removed from it", exc)
            return
        except Exception:  # noqa: BLE001 - a defect is told, and is not the end of the log
            _log.exception("decision log: a defect; nothing was removed from it")
            return
        if gone:
            _log.info("decision log: %d entries older than %s were removed", gone, self._retention)

    def lost(self, count: int) -> None:
        """Remember that so many decisions could not be kept; the next entry says so."""
        with self._counting:
            self._missing += count
        ENTRIES.labels("lost").inc(count)


def _bounded(content: Mapping[str, object]) -> dict[str, object]:
    """The content, with what strangers wrote cut where the whole would be too long."""
    if len(canonical(content)) <= CONTENT_LIMIT:
        return dict(content)
    return {name: value[:200] if isinstance(value, str) else value for name, value in content.items()}
