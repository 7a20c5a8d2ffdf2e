"""Who holds the connections of a listener: floods over real sockets, from several addresses of this machine."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from prometheus_client import generate_latest

from dstack.transport import connections
from dstack.transport import listener as listener_module
from dstack.transport.connections import peer_of
from dstack.transport.listener import Listener
from dstack.transport.tls import server_context
from tests.unit.transport.conftest import SECONDS, Certificates, answered_json, connected, verifying

FLOOD, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
SIZE = 4
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
WORK = ASK.replace(b"/ ", b"/work ", 1)
UPLOAD = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf"


class Site:
    """A listener with few places, and everything that connects to it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()
        self.port = 0

    def start(self, **settings: object) -> Site:
        """Listen."""
        self._stack.callback(self.leave.set)
        self.port = self._stack.enter_context(Listener(self._app(), **settings).running()).port  # type: ignore[arg-type]
        # A method that works is let go before the listener waits for it.
        self._stack.callback(self.leave.set)
        return self

    def connect(self, address: str, first: bytes = b"") -> socket.socket:
        """A connection from *address* that has sent *first*."""
        connection = self._stack.enter_context(connected(self.port, address))
        connection.sendall(first)
        return connection

    def shake(self, connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        """The connection, after a TLS handshake."""
        return self._stack.enter_context(context.wrap_socket(connection, server_hostname="localhost"))

    def flood(self, address: str, number: int, first: bytes = b"") -> list[socket.socket]:
        """Several; where *first* is a request for work or an upload, each is known to have been begun."""
        made = []
        for _ in range(number):
            made.append(self.connect(address, first))
            if first in (WORK, UPLOAD):
                assert self.entered.acquire(timeout=SECONDS)
        return made

    def _app(self) -> FastAPI:
        async def upload(request: Request) -> bool:
            self.entered.release()
            return bool(await request.body())

        def work() -> bool:
            self.entered.release()
            return self.leave.wait(SECONDS)

        app = FastAPI()
        app.add_api_route("/", lambda: True)
        app.add_api_route("/work", work)
        app.add_api_route("/upload", upload, methods=["POST"])
        return app


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Not listening yet."""
    monkeypatch.setattr(listener_module, "MAX_CONNECTIONS", SIZE)
    with ExitStack() as stack:
        yield Site(stack)


def asked(connection: socket.socket) -> tuple[int, object]:
    """What a request of its own is answered."""
    connection.sendall(ASK)
    return answered_json(connection)


def is_closed(connection: socket.socket) -> bool:
    """Waits until the other side has closed it; False where it answers something instead."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def counted(why: str) -> float:
    """How many connections were ended so."""
    text = generate_latest(connections.METRICS).decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if f'ended_total{{why="{why}"}}' in line)


TOO_MANY = (503, {"error": "too many connections: want fewer, try again in a second", "kind": "unavailable"})


def test_a_flood_from_one_address_gives_way_to_another(site: Site) -> None:
    """Where one address holds all places, its oldest idle connection is closed for a newcomer, and only that."""
    site.start(connections_of_peer=SIZE)
    flood = site.flood(FLOOD, SIZE)
    before = counted("gave_way")

    assert asked(site.connect(OTHER)) == (200, True)

    assert is_closed(flood[0])
    assert [asked(connection) for connection in flood[1:]] == [(200, True)] * (SIZE - 1)
    assert counted("gave_way") == before + 1


def test_the_greediest_gives_way_not_the_oldest(site: Site) -> None:
    """The oldest connection of all stays, because its address has no more than it."""
    site.start(connections_of_peer=SIZE)
    honest = site.connect(OTHER)
    flood = site.flood(FLOOD, SIZE - 1)

    assert asked(site.connect(THIRD)) == (200, True)

    assert is_closed(flood[0])
    assert asked(honest) == (200, True)


def test_an_address_has_its_share_and_no_more(site: Site) -> None:
    """At work on all of its share, an address is told 503; the places that are left are for others."""
    site.start(connections_of_peer=2)
    work = site.flood(FLOOD, 2, WORK)
    before = counted("turned_away")

    assert asked(site.connect(FLOOD)) == TOO_MANY
    assert asked(site.connect(OTHER)) == (200, True)
    assert counted("turned_away") == before + 1

    site.leave.set()
    assert [answered_json(connection) for connection in work] == [(200, True)] * 2


def test_within_its_share_an_address_closes_its_own(site: Site) -> None:
    """One connection more than its share closes the oldest idle one of the same address."""
    site.start(connections_of_peer=2)
    other, first, second = site.connect(OTHER), *site.flood(FLOOD, 2)

    assert asked(site.connect(FLOOD)) == (200, True)

    assert is_closed(first)
    assert [asked(second), asked(other)] == [(200, True)] * 2


def test_half_a_body_gives_way_to_who_has_less(site: Site) -> None:
    """Uploads that do not go on hold no place against an address that has none."""
    site.start(connections_of_peer=SIZE)
    uploads = site.flood(FLOOD, SIZE, UPLOAD)

    assert asked(site.connect(OTHER)) == (200, True)

    assert is_closed(uploads[0])
    uploads[1].sendall(b" whole")
    assert answered_json(uploads[1]) == (200, True)


def test_half_a_body_does_not_give_way_to_its_equal(site: Site) -> None:
    """An upload is not ended for an address that would then have as many as are left."""
    site.start(connections_of_peer=SIZE)
    uploads = site.flood(FLOOD, SIZE // 2, UPLOAD) + site.flood(OTHER, SIZE // 2, UPLOAD)

    assert asked(site.connect(OTHER)) == TOO_MANY

    for upload in uploads:
        upload.sendall(b" whole")
    assert [answered_json(upload) for upload in uploads] == [(200, True)] * SIZE


def test_what_is_worked_at_is_not_ended(site: Site) -> None:
    """Where all places are at work, a newcomer is told 503, whoever has them; after that there are places again."""
    site.start(connections_of_peer=SIZE)
    work = site.flood(FLOOD, SIZE, WORK)

    assert asked(site.connect(OTHER)) == TOO_MANY

    site.leave.set()
    assert [answered_json(connection) for connection in work] == [(200, True)] * SIZE
    assert asked(site.connect(OTHER)) == (200, True)


def test_places_come_back(site: Site) -> None:
    """However connections end, their places can be had again."""
    site.start(connections_of_peer=SIZE)
    for _ in range(3):
        for connection in [*site.flood(FLOOD, SIZE // 2, ASK), *site.flood(OTHER, SIZE // 2)]:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    before = counted("gave_way")

    last = site.flood(THIRD, SIZE, ASK)

    assert [answered_json(connection) for connection in last] == [(200, True)] * SIZE
    assert [asked(connection) for connection in last] == [(200, True)] * SIZE
    assert counted("gave_way") == before


def test_whoever_reaches_a_unix_socket_has_all_places(site: Site, tmp_path: Path) -> None:
    """There are no addresses there: only the whole has a limit."""
    path = tmp_path / "agent.sock"
    site.start(unix_socket=path, connections_of_peer=1)
    with ExitStack() as stack:
        made = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(SIZE)]
        for connection in made:
            connection.settimeout(SECONDS)
            connection.connect(str(path))

        assert [asked(connection) for connection in made] == [(200, True)] * SIZE


@pytest.fixture
def tls(certificates: Certificates) -> ssl.SSLContext:
    """The server's side."""
    return server_context(certificates.server, client_ca_pem=certificates.temp_ca_pem)


@pytest.fixture
def shaken(site: Site, certificates: Certificates) -> Callable[[str], ssl.SSLSocket]:
    """Makes connections whose handshake is done."""
    context = verifying(certificates)
    return lambda address: site.shake(site.connect(address), context)


def test_handshakes_that_do_not_begin_take_no_place(
    site: Site, tls: ssl.SSLContext, shaken: Callable[[str], ssl.SSLSocket]
) -> None:
    """Any number of silent connections neither ends those that are served nor keeps others from being served."""
    site.start(tls=tls, connections_of_peer=SIZE)
    served = [shaken(OTHER) for _ in range(SIZE - 1)]
    silent = site.flood(FLOOD, 3 * SIZE)

    newcomer = shaken(THIRD)

    assert [asked(connection) for connection in (*served, newcomer)] == [(200, True)] * SIZE
    assert all(map(is_closed, silent[: 2 * SIZE]))


def test_one_address_has_a_share_of_the_handshakes(site: Site, tls: ssl.SSLContext, certificates: Certificates) -> None:
    """One more than its share ends the oldest handshake of the same address, not another's."""
    site.start(tls=tls, connections_of_peer=2, handshake_seconds=SECONDS)
    slow, flood = site.connect(OTHER), site.flood(FLOOD, 3)

    assert is_closed(flood[0])
    context = verifying(certificates)
    assert asked(site.shake(slow, context)) == (200, True)
    assert asked(site.shake(flood[1], context)) == (200, True)


def test_a_handshake_has_its_time(site: Site, tls: ssl.SSLContext, shaken: Callable[[str], ssl.SSLSocket]) -> None:
    """A handshake that does not end is ended; a connection that is served goes on after that time."""
    site.start(tls=tls, handshake_seconds=0.5)
    before = counted("late")
    served = shaken(OTHER)

    silent = site.flood(FLOOD, 2, b"\x16\x03\x01")

    assert all(map(is_closed, silent))
    assert counted("late") == before + 2
    assert asked(served) == (200, True)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_who_counts_as_one(address: str, peer: str) -> None:
    """An IPv4 address however it is written, or an IPv6 network of 64 bits."""
    assert peer_of(address) == peer
