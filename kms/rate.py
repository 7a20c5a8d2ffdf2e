"""How often strangers may ask: token buckets for each address and for all of them together, before anything is read.

What a call costs the chain's endpoints is bounded elsewhere: whoever asks the same thing within a second shares one
answer (`dstack.chain.endpoints`). This bounds how many different things can be asked.

Only methods count. What else there is (`/health`, `/metrics`, paths that are not found) asks nobody and costs less than
the handshake that everybody may have; and where one address stands for many, as a balancer's does, a limit there would
let each of them make this KMS be taken for dead.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dstack.transport.connections import peer_of
from dstack.wire.prpc import error_json

METRICS = CollectorRegistry()
PEERS_LIMIT = 10_000
TOO_MANY_REQUESTS = 429
_BURST_SECONDS = 2.0

_LIMITED = Counter(
    "dstack_kms_requests_limited", "Requests refused unread, by whose limit.", ["limit"], registry=METRICS
)


@dataclass(slots=True)
class TokenBucket:
    """So many a second, and twice as many at once.

    Attributes:
        rate: Tokens a second.
        tokens: How many there are now.
        at: When that was counted; seconds, monotonic.
    """

    rate: float
    tokens: float
    at: float

    @classmethod
    def full(cls, rate: float, at: float) -> TokenBucket:
        """One that nobody has taken from."""
        return cls(rate, max(1.0, rate * _BURST_SECONDS), at)

    def take(self, at: float) -> bool:
        """Take a token, if there is one."""
        capacity = max(1.0, self.rate * _BURST_SECONDS)
        self.tokens = min(capacity, self.tokens + max(0.0, at - self.at) * self.rate)
        self.at = at
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class RateLimit:
    """Counts requests by address."""

    def __init__(self, *, everybody: float, peer: float, now: Callable[[], float] = time.monotonic) -> None:
        """Take the limits.

        Args:
            everybody: Requests a second, from all addresses together.
            peer: Requests a second from one address.
            now: Seconds, monotonic.
        """
        self._peer_rate = peer
        self._now = now
        self._lock = threading.Lock()
        self._everybody = TokenBucket.full(everybody, now())
        self._peers: OrderedDict[str, TokenBucket] = OrderedDict()

    def refusal(self, address: str) -> str | None:
        """Whose limit a request from *address* exceeds, "peer" or "everybody"; None if it may be answered."""
        peer, at = peer_of(address), self._now()
        with self._lock:
            bucket = self._peers.get(peer)
            if bucket is None:
                bucket = self._peers[peer] = TokenBucket.full(self._peer_rate, at)
                if len(self._peers) > PEERS_LIMIT:
                    self._peers.popitem(last=False)
            self._peers.move_to_end(peer)
            # An address over its own limit takes nothing from the others.
            if not bucket.take(at):
                return "peer"
            return None if self._everybody.take(at) else "everybody"


class RateLimited:
    """An application whose calls are limited; a request over the limit is answered before its body is read."""

    def __init__(self, app: ASGIApp, limit: RateLimit, *, path: str = "/prpc/") -> None:
        """Wrap *app*.

        Args:
            app: What answers.
            limit: Counts.
            path: Beginning of the paths that count.
        """
        self._app = app
        self._limit = limit
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].startswith(self._path):
            exceeded = self._limit.refusal((scope.get("client") or ("",))[0])
            if exceeded is not None:
                _LIMITED.labels(exceeded).inc()
                await _refused(exceeded)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refused(exceeded: str) -> Response:
    whose = "from your address" if exceeded == "peer" else "from everybody together"
    return Response(
        error_json(f"too many requests {whose}: want fewer, try again in a second", kind="unavailable"),
        status_code=TOO_MANY_REQUESTS,
        headers={"Retry-After": "1", "Connection": "close"},
        media_type="application/json",
    )
