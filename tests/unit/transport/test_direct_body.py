"""Large bodies past the event loop: a thread reads or writes the connection, the parser knows what is left."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from dstack.transport import direct_body, listener
from dstack.transport.direct_body import Fill, Parts
from dstack.transport.listener import BODY_RECEIVER, BODY_SENDER, Listener, PeerCertificateProtocol
from dstack.transport.tls import server_context
from tests.unit.transport.conftest import SECONDS, Certificates, answered, connected, verifying

CONTENT = os.urandom(3 << 20)
IDLE_SECONDS, BUFFER_SECONDS = 0.5, 1.0


class Taker:
    """An application that takes `?take=` bytes of a body past the parser and the rest from it, and sends all back."""

    def __init__(self) -> None:
        self.filled: list[bool | str] = []
        self.begun = threading.Event()
        self.protocols: list[PeerCertificateProtocol] = []

    async def answer(self, request: Request) -> Response:
        """Status 408 where nothing comes for too long; the header says whether it went past the parser."""
        buffer, ahead = memoryview(bytearray(int(request.query_params["take"]))), bytearray()
        receive: partial[Any] = request.scope["state"][BODY_RECEIVER]
        self.protocols.append(receive.args[0])
        try:
            aside = await receive(
                ahead, partial(self.work, buffer), idle_seconds=IDLE_SECONDS, buffer_seconds=BUFFER_SECONDS
            )
        except TimeoutError as exc:
            return Response(str(exc), status_code=408)
        try:
            rest = b"".join([piece async for piece in request.stream()])
        except ClientDisconnect:
            self.filled.append("disconnected")
            return Response(status_code=400)
        content = bytes(buffer) if aside and self.filled[-1] else b""
        return Response(content + ahead + rest, headers={"X-Aside": str(aside)})

    def work(self, buffer: memoryview, fill: Fill) -> None:
        """In the thread."""
        self.begun.set()
        self.filled.append(fill(buffer))

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
    takes = (0, 1, 70_000, len(CONTENT) - 1, len(CONTENT))

    for take in takes:
        connection.sendall(head(take) + CONTENT)
        assert answered(connection) == (200, CONTENT)

    assert taker.filled == [True] * len(takes)


def test_next_request_behind_the_body_is_not_taken_for_it(taker: Taker, connection: socket.socket) -> None:
    """What follows the body on the connection is the next request, even where the buffer had room."""
    connection.sendall(head(len(CONTENT) + 1) + CONTENT + head(6, 6) + b"second")

    with connection.makefile("rb") as stream:
        said = b""
        while not said.endswith(b"second"):
            said += stream.read(1)

    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert taker.filled == [False]


def test_body_without_a_length_is_left_to_the_parser(taker: Taker, connection: socket.socket) -> None:
    """A body in chunks comes unchanged; what was not parsed yet is not taken past the parser."""
    connection.sendall(b"POST /?take=9 HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.sendall(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")

    assert answered(connection) == (200, b"abcdef")
    assert taker.filled == []


def test_length_beside_chunks_says_nothing(taker: Taker, connection: socket.socket) -> None:
    """Of a body in chunks a length is ignored, here as by the parser: the next request is not taken for the body."""
    connection.sendall(head(100, 40, "Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n")
    connection.sendall(b"3\r\ndef\r\n0\r\n\r\n")
    assert answered(connection) == (200, b"abcdef")

    connection.sendall(head(4, 4) + b"next")
    assert answered(connection) == (200, b"next")


@pytest.mark.parametrize("take", [0, 9], ids=["read", "filled"])
def test_large_chunks_may_be_many(taker: Taker, connection: socket.socket, take: int) -> None:
    """A thousand small chunks and any number of others are a body."""
    chunks = [b"x"] * 1000 + [b"y" * 64] * 5000
    connection.sendall(f"POST /?take={take} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    connection.sendall(b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\na: b\r\n\r\n")

    assert answered(connection) == (200, b"".join(chunks))


@pytest.mark.parametrize(
    "end", [b"1\r\nx\r\n" * 40_000, b"0\r\n" + b"a:\r\n" * 10_000 + b"\r\n"], ids=["small chunks", "many lines"]
)
def test_body_that_takes_long_to_parse_is_refused(
    connection: socket.socket, end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Small chunks, or lines behind the last, would take the loop's time from everybody: soon the connection ends."""
    connection.sendall(b"POST /?take=0 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    answer = b""
    # What the server has not read resets the connection, perhaps before its answer is here.
    with suppress(ConnectionError):
        connection.sendall(end)
        while piece := connection.recv(4096):
            answer += piece

    assert answer[:12] in (b"", b"HTTP/1.1 400")
    assert caplog.records == []


def test_client_that_waits_for_leave_gets_it(taker: Taker, connection: socket.socket) -> None:
    """With `Expect: 100-continue` nothing is taken before the parser has told the client to go on."""
    connection.sendall(head(4, 4, "Expect: 100-continue\r\n"))

    with connection.makefile("rb") as stream:
        assert stream.readline().split()[1] == b"100"
        stream.readline()
        connection.sendall(b"body")
        assert stream.readline().split()[1] == b"200"
    assert taker.filled == []


def test_silence_ends_the_waiting(taker: Taker, connection: socket.socket) -> None:
    """A client that sends nothing more for too long is told so."""
    connection.sendall(head(10, 10) + b"some")

    assert answered(connection) == (408, b"0.5")


def test_a_buffer_has_its_time(taker: Taker, connection: socket.socket) -> None:
    """A client that sends a little now and then is told so too."""
    connection.sendall(head(1000, 1000))
    for _ in range(6):
        connection.sendall(b"x")
        time.sleep(IDLE_SECONDS / 2)

    assert answered(connection) == (408, b"1.0")


def test_broken_connection_is_noticed(taker: Taker) -> None:
    """The buffer is not full, and the parser says that the client has gone."""
    with Listener(taker.app()).running() as listener, connected(listener.port) as connection:
        connection.sendall(head(len(CONTENT)) + CONTENT[:100_000])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""

    assert taker.filled == [False, "disconnected"]


def test_tls_goes_the_other_way(taker: Taker, certificates: Certificates) -> None:
    """Through TLS everything comes by the parser."""
    context = verifying(certificates)
    tls = server_context(certificates.server, client_ca_pem=certificates.temp_ca_pem)

    with (
        Listener(taker.app(), tls=tls).running() as listener,
        connected(listener.port) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(head(len(CONTENT)) + CONTENT)
        assert answered(connection) == (200, CONTENT)

    assert taker.filled == []


def test_who_finds_no_place_goes_the_other_way(taker: Taker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow clients keep nobody out: only a few have threads."""
    monkeypatch.setattr(direct_body, "_places", threading.BoundedSemaphore(1))
    with (
        Listener(taker.app()).running() as listener,
        connected(listener.port) as slow,
        connected(listener.port) as other,
    ):
        slow.sendall(head(10, 10))
        assert taker.begun.wait(SECONDS)
        other.sendall(head(len(CONTENT)) + CONTENT)
        assert answered(other) == (200, CONTENT)
        slow.sendall(b"0123456789")
        assert answered(slow) == (200, b"0123456789")
        other.sendall(head(len(CONTENT)) + CONTENT)
        assert answered(other) == (200, CONTENT)

    assert taker.filled == [True, True]


@pytest.mark.parametrize("end", ["abort", "stop"])
def test_a_thread_ends_with_its_connection(taker: Taker, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the connection gives way to another, or the listener stops, nobody stays behind waiting for the client."""
    monkeypatch.setattr(listener, "GRACE_SECONDS", 0)
    monkeypatch.setattr(__name__ + ".IDLE_SECONDS", 10 * SECONDS, raising=True)
    began = time.monotonic()
    with Listener(taker.app()).running() as serving, connected(serving.port) as connection:
        connection.sendall(head(10, 10) + b"some")
        assert taker.begun.wait(SECONDS)
        if end == "abort":
            protocol = taker.protocols[0]
            protocol.loop.call_soon_threadsafe(protocol.abort)
            assert connection.recv(1) == b""

    while direct_body._places._value < direct_body.AT_ONCE:
        time.sleep(0.01)
        assert time.monotonic() - began < SECONDS
    assert taker.filled[0] is False


@dataclass
class Giver:
    """An application that answers with *parts*; remembers whether they were closed, and went past the loop."""

    make: Callable[[], Parts]
    size: int
    closed: threading.Event = field(default_factory=threading.Event)
    aside: list[bool] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    protocols: list[PeerCertificateProtocol] = field(default_factory=list)

    def parts(self) -> Parts:
        """Those of `make`."""
        try:
            yield from self.make()
        finally:
            self.closed.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sender: partial[Any] = scope["state"][BODY_SENDER]
        self.protocols.append(sender.args[0])
        headers = [(b"content-length", str(self.size).encode())]
        begin = partial(send, {"type": "http.response.start", "status": 200, "headers": headers})
        parts = self.parts()
        try:
            self.aside.append(await sender(self.size, parts, begin=begin))
        except ZeroDivisionError as exc:
            self.failures.append(str(exc))
            return
        if not self.aside[-1]:
            await begin()
            await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def app(self) -> FastAPI:
        """It, at `/`."""
        application = FastAPI()
        application.mount("/", self)
        return application


REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
PART = 1 << 20


def pieces(count: int = 3) -> Parts:
    """`CONTENT` in as many parts."""
    for at in range(count):
        yield CONTENT[at * PART : (at + 1) * PART]


def test_parts_are_sent_and_the_connection_goes_on() -> None:
    """One answer after the other, whole; the parts are closed each time."""
    giver = Giver(pieces, len(CONTENT))
    with Listener(giver.app()).running() as serving, connected(serving.port) as connection:
        for _ in range(3):
            giver.closed.clear()
            connection.sendall(REQUEST)
            assert answered(connection) == (200, CONTENT)
            assert giver.closed.wait(SECONDS)

    assert giver.aside == [True] * 3


def test_without_a_place_an_answer_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing was begun: whoever asked sends it himself."""
    monkeypatch.setattr(direct_body, "_places", threading.BoundedSemaphore(1))
    direct_body._places.acquire()
    giver = Giver(pieces, len(CONTENT))
    with Listener(giver.app()).running() as serving, connected(serving.port) as connection:
        connection.sendall(REQUEST)
        assert answered(connection) == (200, CONTENT)

    assert giver.aside == [False]


def test_a_part_that_cannot_be_made_ends_the_connection() -> None:
    """The client sees that the answer is cut off, and the next one is not taken for its rest."""

    def failing() -> Parts:
        yield CONTENT[:PART]
        raise ZeroDivisionError("no more")

    giver = Giver(failing, len(CONTENT))
    with Listener(giver.app()).running() as serving, connected(serving.port) as connection:
        connection.sendall(REQUEST)
        with connection.makefile("rb") as stream:
            said = bytearray()
            while piece := _read(stream):
                said += piece

    body = bytes(said).partition(b"\r\n\r\n")[2]
    assert (body, len(body) <= PART) == (CONTENT[: len(body)], True)
    assert (giver.failures, giver.closed.is_set()) == (["no more"], True)


@pytest.mark.parametrize("way", ["goes away", "takes nothing", "gives way"])
def test_a_client_that_does_not_take_it_holds_nobody(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are closed and the place is free, however the client stops."""
    monkeypatch.setattr(direct_body, "PART_SECONDS", 0.2 if way == "takes nothing" else 10 * SECONDS)
    giver = Giver(lambda: (CONTENT[:PART] for _ in range(1000)), 1000 * PART)
    with Listener(giver.app()).running() as serving, connected(serving.port) as connection:
        connection.sendall(REQUEST)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        if way == "goes away":
            connection.close()
        elif way == "gives way":
            giver.protocols[0].loop.call_soon_threadsafe(giver.protocols[0].abort)
        assert giver.closed.wait(SECONDS)
        until = time.monotonic() + SECONDS
        while direct_body._places._value < direct_body.AT_ONCE:
            time.sleep(0.01)
            assert time.monotonic() < until


def _read(stream: Any) -> bytes:
    try:
        return bytes(stream.read1(1 << 20))
    except OSError:
        return b""
