"""What time it is, where the host may set the clock.

The clock of a CVM is the host's. Set back, it would make requests, transfers and collateral look younger than they are;
so time is the latest of the clock, of what this node has seen already, and of the block that the chain agreed on.

A clock that was ahead for a moment does not count for ever: what was seen further beyond the agreed block than this may
be old was never the time, or the chain stands still; it is forgotten. Whoever makes use of that by setting the clock
gets it no further back than to the block, and there it could have been from the start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from dstack.policy import BlockRef


class Moments:
    """A clock that does not go back. May be read from several threads.

    Args:
        clock: The machine's.
        max_age: How old the agreed block may be; None where that is not asked, and what was seen counts for ever.
    """

    def __init__(self, clock: Callable[[], datetime], max_age: timedelta | None) -> None:
        self._clock = clock
        self._max_age = max_age
        self._latest = datetime.fromtimestamp(0, UTC)
        self._lock = threading.Lock()

    def now(self, block: BlockRef | None = None) -> datetime:
        """The time, which is not before that of *block*; a block does not move the clock for later questions."""
        at_block = datetime.fromtimestamp(block.timestamp if block else 0, UTC)
        with self._lock:
            clock = self._clock()
            if block is not None and self._max_age is not None and self._latest - at_block > self._max_age:
                self._latest = clock
            self._latest = max(self._latest, clock)
            return max(self._latest, at_block)
