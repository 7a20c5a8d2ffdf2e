"""One HTTP listener: TCP, TLS or a unix socket, with limits, stopped from any thread.

Limits: 10 s for a TLS handshake, headers 64 KiB and 10 s, 60 s for a client to take what waits for it, 256 connections
that shake hands and 256 others, of which one address may hold half (`connections`), 10 s of grace at the end. Those of
the body are `server`'s. There is no access log: a query may carry arguments of a method.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dstack.errors import ConfigError
from dstack.transport.bodies import BodyBudget, Leased
from dstack.transport.connections import Activity, CountedSocket, Ledger
from dstack.transport.direct_body import BodyParser, abort, receive_body, send_as_body
from dstack.transport.pacing import leave_unpaced
from dstack.wire.prpc import error_json

HEADER_LIMIT = 64 << 10
HEADER_SECONDS = 10.0
WRITE_SECONDS = 60.0
HANDSHAKE_SECONDS = 10.0
MAX_CONNECTIONS = 256
CONNECTIONS_OF_PEER = 128
GRACE_SECONDS = 10
PEER_CERTIFICATE = "peer_certificate_der"
"""The member of a request's state that holds the client's certificate in DER, or None."""

BODY_RECEIVER = "body_receiver"
"""The member of a request's state that receives the rest of a body: `direct_body.receive_body` of its connection."""

BODY_SENDER = "body_sender"
"""The member of a request's state that sends the body of an answer: `direct_body.send_as_body` of its connection."""

_START_SECONDS = 30.0
# Of all listeners: they share the memory.
_BODIES = BodyBudget()
# What arrives while the loop is busy: not so many that there are no descriptors left when it comes to them.
_BACKLOG = 256


class PeerCertificateProtocol(H11Protocol):
    """HTTP/1.1 that hands the client's certificate to each request.

    Connections that send no request, or do not take their answer, are closed.
    """

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def __init__(self, ledger: Ledger, **settings: Any) -> None:
        """Take what uvicorn gives, and where connections are counted."""
        super().__init__(**settings)
        self.conn = BodyParser(HEADER_LIMIT)
        self._ledger = ledger

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, and put the certificate where uvicorn copies every request's state from."""
        super().connection_made(transport)
        if not self._ledger.serve(transport.get_extra_info("socket").fileno(), self):
            self.app = _turn_away
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls else None
        self.app_state = {
            **self.app_state,
            PEER_CERTIFICATE: certificate,
            BODY_RECEIVER: partial(receive_body, self),
            BODY_SENDER: partial(send_as_body, self),
        }
        self._watch_header()

    def activity(self) -> Activity:
        """What the connection waits for now."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return Activity.IDLE
        if cycle.more_body or self._write_timer is not None or self._is_sent_aside():
            return Activity.STALLED
        return Activity.WORKING

    def _is_sent_aside(self) -> bool:
        return isinstance(self.conn, BodyParser) and self.conn.is_sent_aside

    def abort(self) -> None:
        """End the connection at once."""
        abort(self.transport)

    def data_received(self, data: bytes) -> None:
        """Time the headers of each request, also of the later ones on a connection."""
        super().data_received(data)
        self._watch_header()

    def send_400_response(self, msg: str) -> None:
        """Tell what is no HTTP so; behind the beginning of an answer there is nothing to tell any more."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        if self.cycle is not None:
            # The application may be at work on it; what it answers goes nowhere.
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        super().connection_lost(exc)
        self._stop_timer()
        self._stop_write_timer()

    def pause_writing(self) -> None:
        """The client takes nothing at the moment: time it, for it holds a connection and what waits for it."""
        super().pause_writing()
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken enough to go on."""
        super().resume_writing()
        self._stop_write_timer()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_header(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class Listener:
    """Serves one application at one address; bound when made, so that a taken port is known at once.

    Args:
        app: What answers.
        host: Address to listen at; unused with *unix_socket*.
        port: TCP port, 0 for any free one; `port` then says which.
        tls: Serve HTTPS with this context.
        unix_socket: Listen at this path instead of TCP.
        unix_mode: Permissions of that path.
        connections_of_peer: How many connections one address may hold; whoever reaches a unix socket may hold all.
        handshake_seconds: How long a TLS handshake may take.

    Raises:
        ConfigError: The address cannot be listened at.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        unix_socket: Path | None = None,
        unix_mode: int = 0o600,
        connections_of_peer: int = CONNECTIONS_OF_PEER,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        self._unix_socket = unix_socket
        share = MAX_CONNECTIONS if unix_socket else min(connections_of_peer, MAX_CONNECTIONS)
        ledger = Ledger(size=MAX_CONNECTIONS, share=share, arrive_seconds=handshake_seconds)
        self._bound_at: tuple[int, int] | None = None
        if unix_socket:
            bound, self._bound_at = _bind_unix(unix_socket, unix_mode)
        else:
            bound = _bind_tcp(host, port)
        self._socket = CountedSocket(bound, ledger)
        self._port = 0 if unix_socket else int(self._socket.getsockname()[1])
        self._name = str(unix_socket) if unix_socket else f"{host}:{self._port}"
        self._server = uvicorn.Server(_configuration(app, tls, ledger))

    @property
    def port(self) -> int:
        """The TCP port; 0 for a unix socket."""
        return self._port

    def run(self) -> None:
        """Serve until `stop`, or until SIGINT or SIGTERM when called in the main thread.

        Raises:
            ConfigError: The system does not let it start.
        """
        try:
            self._server.run(sockets=[self._socket])
        except OSError as exc:
            if self._server.started:
                raise
            raise ConfigError(f"want to listen at {self._name}, got {exc.strerror or exc}") from exc
        finally:
            self._socket.close()
            self._remove_unix_socket()

    def _remove_unix_socket(self) -> None:
        """What somebody else put at the path meanwhile stays."""
        if self._unix_socket is None:
            return
        with suppress(FileNotFoundError):
            if _which(self._unix_socket.lstat()) == self._bound_at:
                self._unix_socket.unlink()

    def stop(self) -> None:
        """Let running requests end, then let `run` return. May be called from any thread."""
        self._server.should_exit = True

    @contextmanager
    def running(self) -> Iterator[Listener]:
        """Serve in a thread of its own for the length of a `with` block.

        Raises:
            ConfigError: It does not start.
        """
        failed: list[Exception] = []
        thread = threading.Thread(target=self._run_beside, args=(failed,), name="listener", daemon=True)
        thread.start()
        try:
            self._wait_until_started(thread, failed)
            yield self
        finally:
            self.stop()
            thread.join()

    def _run_beside(self, failed: list[Exception]) -> None:
        """Before the start whoever waits for it tells of a failure; later nobody waits."""
        try:
            self.run()
        except Exception as exc:
            if self._server.started:
                raise
            failed.append(exc)

    def _wait_until_started(self, thread: threading.Thread, failed: list[Exception]) -> None:
        pause = threading.Event()
        for _ in range(int(_START_SECONDS / 0.01)):
            is_over = not thread.is_alive()
            if self._server.started:
                return
            if failed:
                raise failed[0]
            if is_over:
                raise ConfigError(f"want to listen at {self._name}, got an end at the start")
            pause.wait(0.01)
        raise ConfigError(f"listener: want it to start within {_START_SECONDS:.0f} s, got nothing")


async def _turn_away(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer to whoever has found no place."""
    answer = Response(
        error_json("too many connections: want fewer, try again in a second", kind="unavailable"),
        status_code=503,
        headers={"Retry-After": "1", "Connection": "close"},
        media_type="application/json",
    )
    await answer(scope, receive, send)


def _configuration(app: FastAPI, tls: ssl.SSLContext | None, ledger: Ledger) -> uvicorn.Config:
    settings: dict[str, Any] = {"ssl_context_factory": lambda _config, _default: tls} if tls else {}
    return uvicorn.Config(
        Leased(app, _BODIES),
        loop="asyncio",
        http=partial(PeerCertificateProtocol, ledger),  # type: ignore[arg-type] # A class is called, no more.
        ws="none",
        lifespan="off",
        log_config=None,
        # Strangers would write lines of a warning for each of their connections.
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=GRACE_SECONDS,
        **settings,
    )


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigError(f"want to listen at {host}:{port}, got {exc.strerror or exc}") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        leave_unpaced(listener, str(address[0]))
        listener.bind(address)
        listener.listen()
    except OSError as exc:
        listener.close()
        raise ConfigError(f"want to listen at {host}:{port}, got {exc.strerror or exc}") from exc
    return listener


def _bind_unix(path: Path, mode: int) -> tuple[socket.socket, tuple[int, int]]:
    """The socket, and which file at *path* is its."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        bound_at = _set_mode(path, mode)
        listener.listen()
    except OSError as exc:
        listener.close()
        raise ConfigError(f"want to listen at {path}, got {exc.strerror or exc}") from exc
    return listener, bound_at


def _set_mode(path: Path, mode: int) -> tuple[int, int]:
    """Of the socket that was just bound, and which file it is; nobody can connect before it listens.

    Whoever may write to the folder can put something else there meanwhile: no link is followed, hard ones included.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or status.st_nlink != 1:
            raise FileExistsError(errno.EEXIST, "something else at this path")
        # A descriptor of that kind cannot be given to fchmod.
        Path(f"/proc/self/fd/{descriptor}").chmod(mode)
    finally:
        os.close(descriptor)
    return _which(status)


def _which(status: os.stat_result) -> tuple[int, int]:
    """What distinguishes a file from others."""
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at; anything else that is in the way stays and makes `bind` fail."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # Where somebody listens who takes no connection now, the probe would wait for it.
            probe.setblocking(False)
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()
