"""What is counted, for Prometheus: upstream's two counters, and ours (kms.md 1.3)."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from dstack.chain import standing
from dstack.transport import connections
from dstack.transport.server import Observation
from kms import decisions, rate
from kms.decision_log import writer as decision_log

TOLD_SECONDS = 1.0
"""For how long a text is told again: making it takes a millisecond, and strangers may ask as often as they like."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The methods of which upstream counts every answer.
_ATTESTED = frozenset({"GetAppKey", "GetKmsKey", "SignCert"})
_FAILED = 400
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# What is counted where it happens: once in a program, whatever services it runs.
_ELSEWHERE = (decisions.METRICS, standing.METRICS, connections.METRICS, decision_log.METRICS, rate.METRICS)

_log = logging.getLogger("kms.requests")


class Metrics:
    """The counters of one service."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Begin to count; *now* tells seconds, monotonic."""
        self._now = now
        self._telling = threading.Lock()
        self._told: tuple[float, bytes] | None = None
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._attested = Counter(
            "dstack_kms_attestation_requests", "Requests that need attestation.", registry=self._registry
        )
        self._failed = Counter(
            "dstack_kms_attestation_failures", "Those of them that were not answered.", registry=self._registry
        )
        self._requests = Counter(
            "dstack_kms_requests", "Requests, by method and status.", ("method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "dstack_kms_request_seconds",
            "How long requests took, by method.",
            ("method",),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def observe(self, observation: Observation) -> None:
        """Count one call, and log it: one JSON line to the logger `kms.requests`."""
        if observation.method in _ATTESTED:
            self._attested.inc()
            self._failed.inc(observation.status >= _FAILED)
        self._requests.labels(observation.method, str(observation.status)).inc()
        self._seconds.labels(observation.method).observe(observation.seconds)
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request": observation.request_id,
            "method": observation.method,
            "status": observation.status,
            "milliseconds": round(observation.seconds * 1000, 1),
        }
        _log.info("%s", json.dumps(line))

    def recent_text(self) -> bytes:
        """As `text`, `TOLD_SECONDS` old at most: for strangers."""
        with self._telling:
            at = self._now()
            if self._told is None or at - self._told[0] >= TOLD_SECONDS:
                self._told = at, self.text()
            return self._told[1]

    def text(self) -> bytes:
        """All of them, in Prometheus's text form."""
        return b"".join(map(generate_latest, (self._registry, *_ELSEWHERE)))
