"""The last refusals of a node, for whoever asks why a handover does not work. Bounded; no secrets."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from datetime import datetime

from dstack.chain.client import printable
from dstack.errors import DstackError, KeyReleaseDeniedError

KEPT = 20
LONGEST_REASON = 400


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was refused, by which rule. *at* in Unix seconds; *rule* is empty where the chain did not decide."""

    at: int
    path: str
    kind: str
    rule: str
    reason: str


class Refusals:
    """The last `KEPT` of them. May be used from several threads."""

    def __init__(self) -> None:
        self._last: deque[Refusal] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def note(self, path: str, error: DstackError, at: datetime) -> None:
        """Remember one."""
        rule = error.rule if isinstance(error, KeyReleaseDeniedError) else ""
        reason = printable(str(error), LONGEST_REASON)
        with self._lock:
            self._last.append(Refusal(int(at.timestamp()), path, type(error).__name__, rule, reason))

    def last(self) -> tuple[Refusal, ...]:
        """The newest first."""
        with self._lock:
            return tuple(reversed(self._last))
