"""What was checked once per content: a bounded memory that its caller holds, and that forgets what has run out.

Checks of collateral and of a platform's certificates give the same answer for the same bytes, as long as nothing in
them begins or ends; so they are done once. An entry remembers from when until when it holds, and is not given outside.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TypeVar

from dstack.errors import ConfigError

_T = TypeVar("_T")
DEFAULT_CAPACITY = 256
_SECOND = timedelta(seconds=1)
# RFC 5280, 4.1.2.5: certificates without an end name the last second there is, which has none after it.
_LAST = datetime.max.replace(tzinfo=UTC) - _SECOND


@dataclass(frozen=True, slots=True)
class Period:
    """From *start* on and before *end*; *ends* names what ends first."""

    start: datetime
    end: datetime
    ends: str

    @classmethod
    def through(cls, start: datetime, last: datetime, ends: str) -> Period:
        """From *start* on until the second *last* is over: certificates and Intel's documents still hold in it."""
        return cls(start, min(last, _LAST) + _SECOND, ends)

    def __contains__(self, at: datetime) -> bool:
        return self.start <= at < self.end

    def within(self, other: Period) -> Period:
        """The time that both hold; where they end together, this one is named."""
        first = self if self.end <= other.end else other
        return Period(max(self.start, other.start), first.end, first.ends)


class ContentCache:
    """Keeps what was concluded from contents, by their digest; the least recently used entry makes room.

    It may be shared by threads.

    Args:
        capacity: Most entries that are kept.

    Raises:
        ConfigError: Room for none.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 1:
            raise ConfigError(f"cache: want room for at least one entry, got {capacity}")
        self._capacity = capacity
        self._entries: OrderedDict[bytes, tuple[Period, object]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, kind: type[_T], at: datetime) -> _T | None:
        """What was concluded, if it holds at *at*."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if at >= entry[0].end:
                del self._entries[key]
                return None
            if at < entry[0].start:
                return None
            self._entries.move_to_end(key)
        return entry[1] if isinstance(entry[1], kind) else None

    def put(self, key: bytes, value: object, period: Period) -> None:
        """Remember *value* for *period*."""
        with self._lock:
            self._entries[key] = (period, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)


def content_key(*contents: bytes) -> bytes:
    """One digest for several contents, each with its length, so that no two lists share one."""
    digest = sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.digest()
