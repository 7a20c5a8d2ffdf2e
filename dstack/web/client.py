"""Clients whose exchanges end: a deadline for all of one, from connecting to the last byte, and limits for its size.

The library's own time limits are for each wait, and one byte a wait lasts for ever, in headers too. Here every wait of
an exchange ends when the exchange must. Nothing is followed elsewhere, no proxy of the environment is asked, no cookie
is kept, and nothing packed is taken, for it could be a thousand times as long when it is unpacked. `SSL_CERT_FILE` is
heeded. What a resolver takes to find an address is the system's to bound.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpcore
import httpx

from dstack.errors import PeerUnavailableError

CONNECT_SECONDS = 5.0
"""How long of an exchange one address may take to be connected to, and again to shake hands."""
CONNECTIONS = 10

_END = "dstack_end"
_PIECE = 64 << 10
_KEPT_SECONDS = 5.0
_SAME_NAMES = (
    "TimeoutException",
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
    "NetworkError",
    "ConnectError",
    "ReadError",
    "WriteError",
    "ProxyError",
    "UnsupportedProtocol",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
)
_ERRORS = {getattr(httpcore, name): getattr(httpx, name) for name in _SAME_NAMES}


def bounded_client(
    *,
    seconds: float,
    connections: int = CONNECTIONS,
    tls: ssl.SSLContext | None = None,
    unix_socket: Path | None = None,
    user_agent: str | None = None,
) -> httpx.Client:
    """A client for several threads at once; `until` gives one of its requests another deadline.

    Args:
        seconds: How long one exchange may take, all in all.
        connections: How many there may be at once, and are kept at most.
        tls: The context for HTTPS; without one, the authorities that the public trusts.
        unix_socket: Connect to this socket; the host of a URL is then only a name.
        user_agent: Said of us; None for the library's word.
    """
    return httpx.Client(
        transport=_BoundedTransport(seconds, connections, tls or _public_authorities(), unix_socket),
        timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
        trust_env=False,
        follow_redirects=False,
        headers={"accept-encoding": "identity"} | ({} if user_agent is None else {"user-agent": user_agent}),
    )


def until(end: float) -> dict[str, Any]:
    """The extensions of a request that must be over at *end* (seconds, monotonic)."""
    return {_END: end}


def bounded_body(response: httpx.Response, limit: int) -> bytes:
    """The whole body, at most *limit* bytes.

    Raises:
        PeerUnavailableError: It is longer, or packed.
        httpx.HTTPError: It did not come.
    """
    packed = response.headers.get("content-encoding", "identity")
    if packed != "identity":
        raise PeerUnavailableError(f"want a plain answer, got one packed as {packed[:20]!r}")
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > limit:
            raise PeerUnavailableError(f"want an answer of at most {limit} bytes, got more")
    return bytes(body)


@lru_cache(1)
def _public_authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class _Clock(threading.local):
    """When the exchange of the calling thread must be over; seconds, monotonic."""

    end = 0.0

    def left(self, wait: float | None, error: type[Exception]) -> float:
        """How long a wait may take that may take *wait* by itself."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise error("the time for all of it is over")
        return left if wait is None else min(wait, left)


class _BoundedTransport(httpx.BaseTransport):
    """The library's own transport, over connections that know when their exchange ends."""

    def __init__(self, seconds: float, connections: int, tls: ssl.SSLContext, unix_socket: Path | None) -> None:
        self._seconds = seconds
        self._clock = _Clock()
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=_KEPT_SECONDS,
            uds=None if unix_socket is None else str(unix_socket),
            network_backend=_BoundedBackend(self._clock),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Ask, and return when the head of the answer has come."""
        if request.url.port == 0:
            # The library would take the scheme's own port.
            raise httpx.UnsupportedProtocol("want a port from 1 to 65535, got 0")
        end = self._clock.end = request.extensions.get(_END, time.monotonic() + self._seconds)
        waits = dict(request.extensions.get("timeout", {}))
        with _translated():
            waits["pool"] = self._clock.left(waits.get("pool"), httpcore.PoolTimeout)
            answer = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions | {"timeout": waits},
                )
            )
        body = _Body(answer, self._clock, end)
        return httpx.Response(answer.status, headers=answer.headers, stream=body, extensions=answer.extensions)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response, clock: _Clock, end: float) -> None:
        self._answer = answer
        self._clock = clock
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        with _translated():
            # Another exchange of this thread may have been between.
            self._clock.end = self._end
            for chunk in self._answer.iter_stream():
                yield chunk
                self._clock.end = self._end

    def close(self) -> None:
        with _translated():
            self._answer.close()


class _BoundedBackend(httpcore.NetworkBackend):
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        # One by one, for the library gives each the whole time.
        for address in _addresses(host, port):
            wait = self._clock.left(timeout, httpcore.ConnectTimeout)
            try:
                stream = self._sockets.connect_tcp(address, port, wait, local_address, socket_options)
                return _BoundedStream(stream, self._clock)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise failure

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        wait = self._clock.left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._sockets.connect_unix_socket(path, wait, socket_options), self._clock)


class _BoundedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In pieces, for the library gives each part that the system takes the whole time.
        for begin in range(0, len(buffer), _PIECE):
            wait = self._clock.left(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[begin : begin + _PIECE], wait)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        wait = self._clock.left(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, wait), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _addresses(host: str, port: int) -> list[str]:
    if ":" in host:
        return [host]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise httpcore.ConnectError(str(exc)) from exc
    return [str(address[0]) for *_, address in found]


@contextmanager
def _translated() -> Iterator[None]:
    """The errors of the library below as those of the library above."""
    try:
        yield
    except tuple(_ERRORS) as exc:
        raise _ERRORS[type(exc)](str(exc)) from exc
