"""How each endpoint stands: what was last wrong with it, and whether anybody waits for it; in logs and metrics."""

from __future__ import annotations

import logging
import threading
import time

from prometheus_client import CollectorRegistry, Counter

METRICS = CollectorRegistry()
FAULTS = Counter(
    "dstack_chain_endpoint_faults", "What was wrong with a chain endpoint.", ["endpoint", "fault"], registry=METRICS
)

# How long an endpoint that is dead or silent is left alone.
PROBE_SECONDS = 1.0
# How long nothing is believed of newer blocks from an endpoint that was caught inventing one.
CAUGHT_SECONDS = 300.0
_UNHEARD = frozenset({"dead", "silent"})

_log = logging.getLogger("dstack.chain")


class Standing:
    """How one endpoint stands."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._fault = ""
        self._message = ""
        self._probe_at = 0.0
        self._caught_until = 0.0

    @property
    def is_heard(self) -> bool:
        """Whether it answered the last time; the others are asked again now and then, but nobody waits for them."""
        return self._fault not in _UNHEARD

    @property
    def may_be_asked(self) -> bool:
        """Whether it is worth a request now."""
        return self.is_heard or time.monotonic() >= self._probe_at

    @property
    def is_believed(self) -> bool:
        """Whether it was not caught inventing a block."""
        return time.monotonic() >= self._caught_until

    @property
    def fault(self) -> str:
        """What is wrong with it, in one word; empty when nothing is."""
        return self._fault

    @property
    def complaint(self) -> str:
        """What is wrong with it, in words; empty when nothing is."""
        return self._message

    def answered(self) -> None:
        """It answered; whether what it said is any good is seen later."""
        with self._lock:
            if self._fault in _UNHEARD:
                self._settle("", "")

    def agreed(self) -> None:
        """It said what enough others say."""
        with self._lock:
            self._settle("", "")

    def failed(self, fault: str, message: str) -> None:
        """It was of no use: *fault* in one word, *message* for people."""
        FAULTS.labels(self.name, fault).inc()
        with self._lock:
            if fault in _UNHEARD:
                self._probe_at = time.monotonic() + PROBE_SECONDS
            self._settle(fault, message)

    def caught(self, message: str) -> None:
        """It invented a block."""
        self._caught_until = time.monotonic() + CAUGHT_SECONDS
        self.failed("invents", message)

    def _settle(self, fault: str, message: str) -> None:
        """A line for each change, and none for more of the same."""
        if fault != self._fault:
            if fault:
                _log.warning("chain endpoint %s: %s: %s", self.name, fault, message)
            elif self._fault:
                _log.info("chain endpoint %s: of use again (was: %s)", self.name, self._fault)
        self._fault, self._message = fault, message
