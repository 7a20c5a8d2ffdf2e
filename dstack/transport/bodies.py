"""How much of the memory the bodies of requests take that are being read or answered: in all, and of one address.

Small bodies are always read, so that large ones of strangers keep nobody from asking for keys.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from starlette.types import ASGIApp, Receive, Scope, Send

from dstack.errors import ServiceBusyError
from dstack.transport.connections import peer_of

SMALL = 64 << 10
IN_FLIGHT = 64 << 20
IN_FLIGHT_OF_PEER = 24 << 20
BODY_LEASE = "body_lease"
"""The member of a request's state that takes bytes for its body, until it is answered."""

_STEP = 256 << 10


class BodyBudget:
    """Bytes for bodies, of a whole process.

    Args:
        total: How many there are.
        of_peer: How many of them one peer may have.
    """

    def __init__(self, total: int = IN_FLIGHT, of_peer: int = IN_FLIGHT_OF_PEER) -> None:
        self._total = total
        self._of_peer = of_peer
        self._lock = threading.Lock()
        self._taken = 0
        self._peers: dict[str, int] = {}

    def take(self, peer: str, size: int) -> None:
        """Take so many bytes.

        Raises:
            ServiceBusyError: There are not so many left, or not for *peer*.
        """
        with self._lock:
            of_peer = self._peers.get(peer, 0) + size
            if of_peer > self._of_peer:
                raise ServiceBusyError(f"body: want at most {self._of_peer} bytes at once from your address, got more")
            if self._taken + size > self._total:
                raise ServiceBusyError(f"body: want at most {self._total} bytes at once from everybody, got more")
            self._taken += size
            self._peers[peer] = of_peer

    def give_back(self, peer: str, size: int) -> None:
        """Give back so many of those taken."""
        with self._lock:
            self._taken -= size
            self._peers[peer] -= size
            if not self._peers[peer]:
                del self._peers[peer]


class BodyLease:
    """What the body of one request has of a budget, for the length of a `with` block."""

    def __init__(self, budget: BodyBudget, address: str) -> None:
        self._budget = budget
        self._address = address
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._taken:
            self._budget.give_back(peer_of(self._address), self._taken)
            self._taken = 0

    def hold(self, size: int) -> None:
        """See that there is room for *size* bytes.

        Raises:
            ServiceBusyError: There is not.
        """
        while SMALL + self._taken < size:
            self._budget.take(peer_of(self._address), _STEP)
            self._taken += _STEP


class Leased:
    """An application whose requests hold what their bodies take until they are answered."""

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        """Wrap *app*."""
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        with BodyLease(self._budget, (scope.get("client") or ("",))[0]) as lease:
            scope["state"][BODY_LEASE] = lease
            await self._app(scope, receive, send)
