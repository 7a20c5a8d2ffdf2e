"""Key epochs: which keys of an app are served, as the contract says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dstack.errors import RefusedError


@dataclass(frozen=True, slots=True)
class KeyEpochs:
    """The current epoch, and how long the one before it is served; epoch 0 is the first, and upstream's.

    Attributes:
        current: Its number.
        previous_until: When the one before ends to be served; None where there is none.
    """

    current: int
    previous_until: datetime | None = None

    def previous(self, at: datetime) -> int | None:
        """The epoch before, if it is served at *at*; not any more in the second that it ends."""
        if self.current == 0 or self.previous_until is None or at >= self.previous_until:
            return None
        return self.current - 1

    def require_served(self, epoch: int, at: datetime) -> int:
        """*epoch*, if it is served at *at*.

        Raises:
            RefusedError: It is over, or has not begun.
        """
        if epoch not in (self.current, self.previous(at)):
            before = f", or {self.current - 1} in its window" if self.current else ""
            raise RefusedError(f"key epoch: want {self.current}{before}, got {epoch}")
        return epoch


FIRST_EPOCH = KeyEpochs(0)
