"""Pacing: none to and from this machine, whatever its default is; elsewhere the default."""

from __future__ import annotations

import socket
from contextlib import closing

import httpx
import pytest
from fastapi import FastAPI, Request

from dstack.transport.listener import BODY_SENDER, Listener
from dstack.transport.pacing import connect, leave_unpaced

HERE = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


def algorithm(connection: socket.socket) -> bytes:
    """How it decides when to send."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def serving_algorithm(request: Request) -> str:
    """That of the connection of a request."""
    protocol = getattr(request.state, BODY_SENDER).args[0]
    return algorithm(protocol.transport.get_extra_info("socket")).decode()


@pytest.mark.parametrize(("family", "address"), HERE)
def test_who_connects_within_this_machine_is_not_paced(family: socket.AddressFamily, address: str) -> None:
    """And has the timeout that was asked for."""
    with (
        socket.create_server((address, 0), family=family) as listener,
        connect(address, listener.getsockname()[1], 7.0) as connection,
    ):
        assert algorithm(connection) == b"reno"
        assert connection.gettimeout() == 7.0
        assert connection.getpeername() == listener.getsockname()


@pytest.mark.parametrize(("family", "address"), HERE)
def test_who_is_accepted_is_not_paced_from_the_start(family: socket.AddressFamily, address: str) -> None:
    """Connections have it from whoever listens, before the machine's default begins."""
    with socket.socket(family) as listener:
        leave_unpaced(listener, address)
        listener.bind((address, 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
            with closing(accepted):
                assert algorithm(accepted) == b"reno"


def test_a_listener_on_this_machine_is_not_paced() -> None:
    """Its connections are asked while they serve."""
    app = FastAPI()
    app.add_api_route("/", serving_algorithm)
    with Listener(app, host="127.0.0.1").running() as listener:
        assert httpx.get(f"http://127.0.0.1:{listener.port}/").json() == "reno"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "", "a/path"])
def test_other_addresses_keep_the_default(address: str) -> None:
    """Paths through a network are not ours to know."""
    with socket.socket() as connection:
        before = algorithm(connection)
        leave_unpaced(connection, address)

        assert algorithm(connection) == before


def test_other_kinds_of_sockets_stay_as_they_are() -> None:
    """There is nothing to set, and nothing fails."""
    ends = socket.socketpair()
    with ends[0], ends[1]:
        leave_unpaced(ends[0], "127.0.0.1")
        ends[0].sendall(b"as before")

        assert ends[1].recv(16) == b"as before"


def test_each_address_of_a_name_is_tried() -> None:
    """A name may have an address that nobody listens at."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        connect("localhost", listener.getsockname()[1], 7.0) as connection,
    ):
        assert connection.getpeername() == listener.getsockname()


def test_nobody_there_is_an_error() -> None:
    """As the library says it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))

        with pytest.raises(ConnectionRefusedError):
            connect("127.0.0.1", bound.getsockname()[1], 7.0)
