"""Who holds the connections of a listener, so that nobody keeps the others out.

A listener has two rooms of one size. In the first a connection arrives: it shakes hands, and the oldest there of the
address that has most always gives way. In the second it is served: an address has a share of it, and where all of it is
taken, an idle connection of the address that has most is closed. A connection that finds no place is told so from the
first room, and ends with what it may take to arrive.

Of an IPv6 address its /64 counts, for whoever has one has all of them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter

METRICS = CollectorRegistry()
_IPV6_PREFIX = 64
_REMEMBERED = 4096

_ENDED = Counter("dstack_connections_ended", "Connections that a listener ended, by why.", ["why"], registry=METRICS)
for _why in ("gave_way", "late", "turned_away"):
    _ENDED.labels(_why)


class Activity(Enum):
    """What a connection waits for."""

    IDLE = "a request"
    STALLED = "the client, for the rest of a request or to take an answer"
    WORKING = "us"


class Occupant(Protocol):
    """Who speaks over an open connection."""

    def activity(self) -> Activity:
        """What it waits for now."""
        ...

    def abort(self) -> None:
        """End the connection at once."""
        ...


@lru_cache(_REMEMBERED)
def peer_of(address: str) -> str:
    """Who counts as one: an IPv4 address, the /64 of an IPv6 address, or any other text as it is."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address) or parsed.ipv4_mapped is not None:
        return str(parsed if isinstance(parsed, ipaddress.IPv4Address) else parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))


class Connection(socket.socket):
    """An accepted socket, which gives its place back when it is closed."""

    def __init__(self, accepted: socket.socket, peer: str, ledger: Ledger) -> None:
        """Take over *accepted*."""
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self.peer = peer
        self.room: Room | None = None
        self.occupant: Occupant | None = None
        self.late: asyncio.TimerHandle | None = None
        self._ledger = ledger

    def close(self) -> None:
        """Close it."""
        self._ledger.leave(self)
        super().close()

    def end(self, why: str) -> None:
        """End it at once, and give its place back: it has done nothing that is worth waiting for."""
        _ENDED.labels(why).inc()
        self._ledger.leave(self)
        if self.occupant is not None:
            self.occupant.abort()
            return
        with suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)


class Room:
    """Places for connections.

    Args:
        size: How many there are.
        share: How many of them one peer may have.
    """

    def __init__(self, size: int, share: int) -> None:
        self._size = size
        self._share = share
        self._count = 0
        self._peers: dict[str, dict[Connection, None]] = {}

    def enter(self, newcomer: Connection) -> bool:
        """Give *newcomer* a place, if need be that of another; whether there was one."""
        own = len(self._peers.get(newcomer.peer, ()))
        if own >= self._share:
            leaving = self._oldest([newcomer.peer], Activity.IDLE)
        elif self._count >= self._size:
            leaving = self._leaving(newcomer.peer, own)
        else:
            leaving = None
        if leaving is not None:
            leaving.end("gave_way")
        elif own >= self._share or self._count >= self._size:
            return False
        self._peers.setdefault(newcomer.peer, {})[newcomer] = None
        self._count += 1
        newcomer.room = self
        return True

    def leave(self, connection: Connection) -> None:
        """Take the place back."""
        connection.room = None
        self._count -= 1
        of_peer = self._peers[connection.peer]
        del of_peer[connection]
        if not of_peer:
            del self._peers[connection.peer]

    def _leaving(self, peer: str, own: int) -> Connection | None:
        """Who gives way to one more of *peer*, which has *own*: idle, or slow and of one that still has more then."""
        counts = {name: len(of_peer) + (name == peer) for name, of_peer in self._peers.items()}
        greedy = sorted(counts, key=counts.__getitem__, reverse=True)
        return self._oldest(greedy, Activity.IDLE) or self._oldest(
            (name for name in greedy if counts[name] > own + 1), Activity.STALLED
        )

    def _oldest(self, peers: Iterable[str], activity: Activity) -> Connection | None:
        candidates = (connection for peer in peers for connection in self._peers[peer])
        return next((each for each in candidates if _activity(each) is activity), None)


def _activity(connection: Connection) -> Activity:
    if connection.occupant is None or connection.late is not None:
        return Activity.IDLE
    return connection.occupant.activity()


class Ledger:
    """The connections of one listener.

    Args:
        size: How many there may be, of those that arrive and again of those that are served.
        share: How many of each one address may have.
        arrive_seconds: How long one may take to arrive.
    """

    def __init__(self, *, size: int, share: int, arrive_seconds: float) -> None:
        self._arriving = Room(size, share)
        self._served = Room(size, share)
        self._arrive_seconds = arrive_seconds
        self._connections: dict[int, Connection] = {}

    def arrive(self, accepted: socket.socket, peer: str) -> Connection:
        """A new connection of *peer*; within the loop that serves it."""
        connection = Connection(accepted, peer, self)
        self._arriving.enter(connection)
        self._connections[connection.fileno()] = connection
        loop = asyncio.get_running_loop()
        connection.late = loop.call_later(self._arrive_seconds, connection.end, "late")
        return connection

    def serve(self, descriptor: int, occupant: Occupant) -> bool:
        """Let the connection of this descriptor, which has arrived, be served; False if there is no place."""
        connection = self._connections.get(descriptor)
        if connection is None:
            occupant.abort()
            return False
        connection.occupant = occupant
        self._arriving.leave(connection)
        if not self._served.enter(connection):
            self._arriving.enter(connection)
            _ENDED.labels("turned_away").inc()
            return False
        self._stop_timer(connection)
        return True

    def leave(self, connection: Connection) -> None:
        """It is over."""
        if connection.room is None:
            return
        connection.room.leave(connection)
        self._connections.pop(connection.fileno(), None)
        self._stop_timer(connection)

    @staticmethod
    def _stop_timer(connection: Connection) -> None:
        if connection.late is not None:
            connection.late.cancel()
            connection.late = None


class CountedSocket(socket.socket):
    """A listening socket whose connections are in a ledger."""

    def __init__(self, listening: socket.socket, ledger: Ledger) -> None:
        """Take over *listening*."""
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self._ledger = ledger

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection."""
        accepted, address = super().accept()
        host = address[0] if isinstance(address, tuple) else ""
        return self._ledger.arrive(accepted, peer_of(host)), address
