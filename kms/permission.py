"""Whether the chain permits this machine to be a KMS: for an operator who waits for it, not for a release of keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from dstack.errors import DstackError, UnavailableError
from dstack.policy import Denied, boot_info
from kms.authorization import ChainAuthority, SelfAuthorization

# However many pages are open, the chain is asked no more often than that.
_KEPT_SECONDS = 3.0


class State(Enum):
    """What came of asking."""

    ALLOWED = "allowed"
    DENIED = "denied"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Permission:
    """The state, and a sentence about it."""

    state: State
    text: str


@dataclass(slots=True)
class PermissionWatch:
    """Asks the chain about this machine, for whoever looks.

    Attributes:
        own: What this machine is.
        authority: The chain.
        now: Seconds, monotonic.
    """

    own: SelfAuthorization
    authority: ChainAuthority
    now: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kept: tuple[float, Permission] | None = None

    def permission(self) -> Permission:
        """What the chain says, at most seconds ago. Never raises: could not ask is an answer here."""
        with self._lock:
            at = self.now()
            if self._kept is None or at - self._kept[0] >= _KEPT_SECONDS:
                self._kept = (at, self._ask())
            return self._kept[1]

    def _ask(self) -> Permission:
        try:
            decision = self.authority.authorize_kms(boot_info(self.own.appraisal()))
        except UnavailableError as exc:
            return Permission(State.WAITING, f"could not ask: {exc}")
        except DstackError as exc:
            return Permission(State.DENIED, f"this machine's own evidence does not hold: {exc}")
        at = f"block {decision.block.number}"
        if isinstance(decision, Denied):
            return Permission(State.DENIED, f"not allowed yet: {decision.reason} ({decision.rule.name}, {at})")
        return Permission(State.ALLOWED, f"allowed ({at})")
