"""Large bodies into memory of the application's, past the parser."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from dstack.transport.listener import BODY_FILLER, Listener
from dstack.transport.tls import server_context
from tests.unit.transport.conftest import Certificates, answered, connected

CONTENT = os.urandom(3 << 20)
IDLE_SECONDS = 0.5


class Taker:
    """An application that takes `?take=` bytes of a body past the parser and the rest from it, and sends all back."""

    def __init__(self) -> None:
        self.filled: list[int] = []

    async def answer(self, request: Request) -> Response:
        """Status 408 where nothing comes for too long."""
        buffer, came = memoryview(bytearray(int(request.query_params["take"]))), []
        try:
            await request.scope["state"][BODY_FILLER](buffer, IDLE_SECONDS, came.append)
        except TimeoutError:
            return Response(status_code=408)
        finally:
            self.filled.append(sum(came))
        try:
            rest = b"".join([piece async for piece in request.stream()])
        except ClientDisconnect:
            return Response(status_code=400)
        return Response(bytes(buffer[: self.filled[-1]]) + rest)

    def app(self) -> FastAPI:
        """It, at `/`."""
        application = FastAPI()
        application.add_api_route("/", self.answer, methods=["POST"], response_model=None)
        return application


@pytest.fixture
def taker() -> Taker:
    """The application."""
    return Taker()


@pytest.fixture
def connection(taker: Taker) -> Iterator[socket.socket]:
    """A connection to it."""
    with Listener(taker.app()).running() as listener, connected(listener.port) as connection:
        yield connection


def head(take: int, length: int = len(CONTENT), more: str = "") -> bytes:
    """A request for *take* bytes of a body of *length*."""
    return f"POST /?take={take} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def test_buffer_is_filled_and_the_rest_stays_the_parsers(taker: Taker, connection: socket.socket) -> None:
    """However much is taken in this way, all of the body comes once, in order, and the connection goes on."""
    takes = (0, 1, 70_000, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1)

    for take in takes:
        connection.sendall(head(take) + CONTENT)
        assert answered(connection) == (200, CONTENT)

    assert taker.filled == [min(take, len(CONTENT)) for take in takes]


def test_next_request_behind_the_body_is_not_taken_for_it(taker: Taker, connection: socket.socket) -> None:
    """What follows the body on the connection is the next request, even where the buffer had room."""
    connection.sendall(head(1 << 20, 5) + b"first" + head(1 << 20, 6) + b"second")

    with connection.makefile("rb") as stream:
        said = b""
        while not said.endswith(b"second"):
            said += stream.read(1)

    assert said.count(b"200 OK") == 2
    assert b"first" in said
    assert taker.filled == [5, 6]


def test_body_without_a_length_is_left_to_the_parser(taker: Taker, connection: socket.socket) -> None:
    """A body in chunks comes unchanged; what was not parsed yet is not taken past the parser."""
    connection.sendall(b"POST /?take=9 HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.sendall(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")

    assert answered(connection) == (200, b"abcdef")


def test_client_that_waits_for_leave_gets_it(taker: Taker, connection: socket.socket) -> None:
    """With `Expect: 100-continue` nothing is taken before the parser has told the client to go on."""
    connection.sendall(head(4, 4, "Expect: 100-continue\r\n"))

    with connection.makefile("rb") as stream:
        assert stream.readline().split()[1] == b"100"
        stream.readline()
        connection.sendall(b"body")
        assert stream.readline().split()[1] == b"200"
    assert taker.filled == [0]


def test_silence_ends_the_waiting(taker: Taker, connection: socket.socket) -> None:
    """A client that sends nothing more for too long is told so."""
    connection.sendall(head(10, 10) + b"some")

    assert answered(connection)[0] == 408
    assert taker.filled == [4]


def test_broken_connection_says_how_much_there_was(taker: Taker) -> None:
    """What had come before the connection broke is in the buffer, and counted."""
    with Listener(taker.app()).running() as listener, connected(listener.port) as connection:
        connection.sendall(head(len(CONTENT)) + CONTENT[:100_000])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""

    assert taker.filled == [100_000]


def test_tls_has_this_way_too(taker: Taker, certificates: Certificates) -> None:
    """Through TLS the buffer is filled with what was encrypted."""
    context = ssl.create_default_context(cadata=certificates.root_ca_pem)
    # From Python 3.13 on the default wants key identifiers, which upstream's certificates do not have.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    tls = server_context(certificates.server, client_ca_pem=certificates.temp_ca_pem)

    with (
        Listener(taker.app(), tls=tls).running() as listener,
        connected(listener.port) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(head(len(CONTENT)) + CONTENT)
        assert answered(connection) == (200, CONTENT)

    assert taker.filled == [len(CONTENT)]
