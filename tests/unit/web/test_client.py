"""Clients whose exchanges end, over real sockets."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing

import httpx
import pytest

from dstack.chain.bounded_http import BoundedClient, EndpointError
from dstack.errors import PeerUnavailableError
from dstack.transport.client import PrpcClient
from dstack.web.client import bounded_body, bounded_client, until
from dstack.wire.kms import GetMetaResponse
from tests.http_answers import answering, trickling

HEAD = b"HTTP/1.1 200 OK\r\n"
STARTS = (b"", HEAD + b"X: ", HEAD + b"Content-Length: 1000000\r\n\r\n")
GENEROUS = 30.0


def ask_chain(url: str) -> None:
    """As chain endpoints are asked."""
    with closing(BoundedClient(seconds=0.5, limit=1 << 20, connections=1)) as client:
        client.exchange("POST", url, b"{}")


def ask_prpc(url: str) -> None:
    """As services are called."""
    with PrpcClient(url, timeout=0.5) as client:
        client.call("GetMeta", None, GetMetaResponse)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("ask", "error"), [(ask_chain, EndpointError), (ask_prpc, PeerUnavailableError)])
def test_an_answer_that_trickles_holds_no_thread(
    start: bytes, ask: Callable[[str], None], error: type[Exception]
) -> None:
    """Headers or a body that come byte by byte end with the exchange: the thread is gone, the connection closed."""
    raised: list[Exception] = []

    def run(url: str) -> None:
        try:
            ask(url)
        except error as exc:
            raised.append(exc)

    with trickling(start) as trickle:
        thread = threading.Thread(target=run, args=(trickle.url,), daemon=True)
        thread.start()
        thread.join(GENEROUS)

        assert not thread.is_alive()
        assert len(raised) == 1
        assert trickle.given_up.wait(GENEROUS)


def test_a_handshake_that_trickles_ends() -> None:
    """The time of an exchange is that of its TLS handshake too."""
    with (
        trickling(b"\x16\x03\x03\x40\x00\x02") as trickle,
        bounded_client(seconds=0.5) as client,
        pytest.raises(httpx.ConnectTimeout),
    ):
        client.get(trickle.url.replace("http:", "https:"))


def test_each_exchange_has_its_own_deadline() -> None:
    """One that is over does not end the next, on a connection that was kept neither."""
    with answering(lambda *_: (200, b"{}")) as server, bounded_client(seconds=GENEROUS) as client:
        first = client.get(server.url)
        with pytest.raises(httpx.TimeoutException, match="the time for all of it is over"):
            client.get(server.url, extensions=until(time.monotonic()))
        second = client.get(server.url)

    assert [first.status_code, second.status_code] == [200, 200]


def test_two_exchanges_of_one_thread_keep_their_deadlines() -> None:
    """A body is read until its own exchange must be over, whatever another of the same thread has meanwhile."""
    with (
        trickling(STARTS[2]) as trickle,
        answering(lambda *_: (200, b"{}")) as server,
        bounded_client(seconds=1) as client,
        client.stream("GET", trickle.url) as slow,
    ):
        assert client.get(server.url, extensions=until(time.monotonic() + 1000)).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            bounded_body(slow, 1 << 20)


def test_a_peer_that_takes_nothing_ends() -> None:
    """A request that is not taken does not hold its sender."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        bounded_client(seconds=0.5) as client,
        pytest.raises(httpx.WriteTimeout),
    ):
        client.post(f"http://127.0.0.1:{listener.getsockname()[1]}", content=bytes(32 << 20))


def test_nothing_is_followed_and_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy does not see the request, and a redirection is an answer like any other."""
    with answering(lambda *_: (302, b"{}")) as server, answering(lambda *_: (200, b"{}")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        with bounded_client(seconds=GENEROUS) as client:
            assert client.get(server.url).status_code == 302

    assert proxy.asked == []


def test_port_0_is_not_the_port_of_the_scheme() -> None:
    """Nobody listens there, and nobody else is asked instead."""
    with bounded_client(seconds=1) as client, pytest.raises(httpx.UnsupportedProtocol, match="want a port from 1"):
        client.get("https://127.0.0.1:0/")


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({}, bytes(11), "want an answer of at most 10 bytes, got more"),
        ({"content-encoding": "gzip"}, gzip.compress(b"x"), "want a plain answer, got one packed as 'gzip'"),
    ],
)
def test_what_is_too_long_or_packed_is_refused(headers: dict[str, str], body: bytes, message: str) -> None:
    """A body is read up to its limit, and never unpacked."""
    response = httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))

    with pytest.raises(PeerUnavailableError, match=message):
        bounded_body(response, 10)


def test_a_body_up_to_the_limit_is_taken() -> None:
    """The limit itself is allowed."""
    assert bounded_body(httpx.Response(200, stream=httpx.ByteStream(bytes(10))), 10) == bytes(10)
