"""How much bodies may take: over real sockets, from several addresses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dstack.errors import ServiceBusyError
from dstack.transport import listener as listener_module
from dstack.transport.bodies import SMALL, BodyBudget, BodyLease
from dstack.transport.listener import Listener
from dstack.transport.server import CallContext, Method, prpc_app
from dstack.wire.kms import AppIdRequest, PublicKeyResponse
from tests.unit.transport.conftest import SECONDS, answered_json, connected

ONE, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
LARGE = SMALL + 1
STEP = 256 << 10


class Site:
    """A service that keeps its callers waiting, with a budget of two large bodies of an address and three in all."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()
        app = prpc_app({"Wait": Method(AppIdRequest, self._wait)}, prefix="KMS.")
        self.port = stack.enter_context(Listener(app).running()).port
        stack.callback(self.leave.set)

    def _wait(self, request: AppIdRequest, _context: CallContext) -> PublicKeyResponse:
        self.entered.release()
        assert self.leave.wait(SECONDS)
        return PublicKeyResponse(request.app_id, b"", 7, b"")

    def ask(self, address: str, size: int) -> socket.socket:
        """Ask with a body of so many bytes."""
        connection = self._stack.enter_context(connected(self.port, address))
        head = f"POST /prpc/Wait?json HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        connection.sendall(head.encode() + b'{"app_id": "07"}'.ljust(size))
        return connection

    def wait(self, address: str, size: int) -> socket.socket:
        """As `ask`, and it is known to have been read."""
        connection = self.ask(address, size)
        assert self.entered.acquire(timeout=SECONDS)
        return connection


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The service."""
    monkeypatch.setattr(listener_module, "_BODIES", BodyBudget(total=3 * STEP, of_peer=2 * STEP))
    with ExitStack() as stack:
        yield Site(stack)


def answered(connection: socket.socket) -> tuple[int, str | None]:
    """The status and what the error says."""
    status, answer = answered_json(connection)
    return status, answer.get("error")


def test_an_address_has_a_share_of_the_memory(site: Site) -> None:
    """With two large bodies at work, a third of the same address is told 503, one of another address is read."""
    held = [site.wait(ONE, LARGE), site.wait(ONE, LARGE)]

    assert answered(site.ask(ONE, LARGE)) == (
        503,
        "body: want at most 524288 bytes at once from your address, got more",
    )
    held.append(site.wait(OTHER, LARGE))

    site.leave.set()
    assert [answered(connection) for connection in held] == [(200, None)] * 3


def test_everybody_together_has_no_more_than_all(site: Site) -> None:
    """With all of it taken, a large body is told 503 whoever sends it, and a small one is read."""
    held = [site.wait(ONE, LARGE), site.wait(ONE, LARGE), site.wait(OTHER, LARGE)]

    assert answered(site.ask(THIRD, LARGE)) == (503, "body: want at most 786432 bytes at once from everybody, got more")
    held.append(site.wait(THIRD, SMALL))
    held.append(site.wait(ONE, SMALL))

    site.leave.set()
    assert [answered(connection) for connection in held] == [(200, None)] * 5


def test_what_was_taken_is_given_back(site: Site) -> None:
    """Answers, refusals and broken connections all give back what they had."""
    site.leave.set()
    for _ in range(4):
        assert answered(site.ask(ONE, LARGE + STEP)) == (200, None)
        assert answered(site.ask(ONE, LARGE + 2 * STEP))[0] == 503
        half = connected(site.port, ONE)
        half.sendall(b"POST /prpc/Wait HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n" + bytes(LARGE))
        half.shutdown(socket.SHUT_WR)
        assert half.recv(1) == b""
        half.close()

    assert answered(site.ask(ONE, LARGE + STEP)) == (200, None)


def test_a_lease_takes_as_it_grows_and_gives_all_back() -> None:
    """Nothing for what is small; in steps beyond; nothing is left at the end, after a refusal neither."""
    budget = BodyBudget(total=2 * STEP, of_peer=2 * STEP)

    for _ in range(3):
        with BodyLease(budget, ONE) as lease:
            lease.hold(SMALL)
            lease.hold(SMALL + 2 * STEP)
            with BodyLease(budget, OTHER) as other, pytest.raises(ServiceBusyError, match="from everybody, got more"):
                other.hold(SMALL + 1)
            with pytest.raises(ServiceBusyError, match="from your address, got more"):
                lease.hold(SMALL + 2 * STEP + 1)
