"""What time it is, where the host may set the clock.

The clock of a CVM is the host's. Set back, it would make requests, transfers and collateral look younger than they are;
so time is the latest of the clock, of what this node has seen already, and of the block that the chain agreed on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

from dstack.policy import BlockRef


class Moments:
    """A clock that does not go back. May be read from several threads."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._latest = datetime.fromtimestamp(0, UTC)
        self._lock = threading.Lock()

    def now(self, block: BlockRef | None = None) -> datetime:
        """The time, which is not before that of *block*; a block does not move the clock for later questions."""
        with self._lock:
            self._latest = max(self._latest, self._clock())
            latest = self._latest
        return latest if block is None else max(latest, datetime.fromtimestamp(block.timestamp, UTC))
