"""Large bodies past the event loop and the parser: a thread reads or writes the connection itself.

The event loop and its parser copy what they are given several times, and each piece costs a turn of the loop. Here the
loop leaves the connection alone while a thread receives into memory of the caller's, or sends what the caller makes.
Only bodies with a `Content-Length` on connections without TLS have this way, and only a few at once: others go the
usual way.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from operator import itemgetter
from typing import TypeVar

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

AT_ONCE = 8
"""Bodies that have a thread each, in one program."""

PART_SECONDS = 120.0
"""How long a client may take to receive one part of an answer."""

MAX_HEAD_LINES = 200
MANY_CHUNKS, SMALL_CHUNK = 1000, 64
"""So many chunks may be of any size; more only as long as there are so many bytes for each."""

_HEAD_END = re.compile(rb"\n\r?\n")
_LENGTH, _CODING = b"content-length", b"transfer-encoding"
_POLL_SECONDS = 0.005
_places = threading.BoundedSemaphore(AT_ONCE)
_threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="body")

_second = itemgetter(1)

Result = TypeVar("Result")
Parts = Generator[bytes | memoryview, None, None]


class _FewTrailers(ChunkedReader):
    """As the library's, which takes long for each line behind the last chunk."""

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if self._reading_trailer:
            _require_few_lines(bytes(buf))
        return super().__call__(buf)


class BodyParser(h11.Connection):
    """The parser of a server, which knows how many bytes of a body with a length are still to come.

    It works in the loop of all connections, so it refuses what takes long to parse.

    Attributes:
        outstanding: So many; None where the body has no length.
        is_sent_aside: Whether a thread sends the body of the answer just now.
    """

    outstanding: int | None = None
    is_sent_aside = False
    _pieces = _bytes = 0

    def __init__(self, header_limit: int) -> None:
        """Take the largest size of a head, in bytes."""
        super().__init__(h11.SERVER, header_limit)
        self.header_limit = header_limit

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As the library's."""
        if self.their_state is h11.IDLE:
            _require_few_lines(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            headers = dict(event.headers)
            # In chunks, a length beside them says nothing.
            is_plain = _LENGTH in headers and _CODING not in headers
            self.outstanding = int(headers[_LENGTH]) if is_plain else None
            self._pieces = self._bytes = 0
            if isinstance(self._reader, ChunkedReader):
                self._reader = _FewTrailers()
        elif isinstance(event, h11.Data):
            if self.outstanding is not None:
                self.outstanding -= len(event.data)
            else:
                self._pieces += 1
                self._bytes += len(event.data)
                if self._pieces > MANY_CHUNKS + self._bytes // SMALL_CHUNK:
                    raise h11.RemoteProtocolError(
                        f"body: want chunks of {SMALL_CHUNK} bytes on average, got smaller ones"
                    )
        return event


def _require_few_lines(came: bytes) -> None:
    end = _HEAD_END.search(came)
    if came.count(b"\n", 0, end.start() + 1 if end else len(came)) > MAX_HEAD_LINES:
        raise h11.RemoteProtocolError(f"head: want at most {MAX_HEAD_LINES} lines, got more", 431)


Fill = Callable[[memoryview], bool]
"""Fills a buffer with the next bytes of a body; False where there are no more, and then the buffer holds fewer.

Raises:
    TimeoutError: They do not come; its argument is the limit in seconds.
"""


async def receive_body(
    protocol: H11Protocol,
    ahead: bytearray,
    work: Callable[[Fill], None],
    *,
    idle_seconds: float,
    buffer_seconds: float,
) -> bool:
    """Do *work* in a thread, on the rest of the body that *protocol* is receiving; False where nothing was done.

    Afterwards a new parser is given the same request with the length that is left, so that whatever follows is its own:
    what *work* left unread, the next request. A connection that breaks is the protocol's to notice.

    Args:
        protocol: Whose application calls this, and meanwhile does not ask for the body in another way.
        ahead: What comes first: of the body, but taken already. What *work* leaves of it stays.
        work: Given what fills its buffers.
        idle_seconds: How long nothing may come.
        buffer_seconds: How long any one buffer may take.

    Raises:
        TimeoutError: As `Fill`, where *work* lets it through.
    """
    parser, cycle = protocol.conn, protocol.cycle
    if not isinstance(parser, BodyParser) or not parser.outstanding or protocol.scope["http_version"] != "1.1":
        return False
    if cycle.waiting_for_100_continue or cycle.response_started or parser.trailing_data[0]:
        return False
    if not _is_plain(protocol) or not _places.acquire(blocking=False):
        return False
    ahead += cycle.body
    cycle.body.clear()
    body = _Body(ahead, parser.outstanding, idle_seconds, buffer_seconds)
    try:
        protocol.flow.pause_reading()
        await _aside(protocol, lambda connection: work(partial(body.fill, connection)), socket.SHUT_RD)
        return True
    finally:
        _places.release()
        if body.left < parser.outstanding:
            _continue_after(protocol, parser, body.left)


class _Body:
    """What is still to come of a body; for one thread."""

    def __init__(self, ahead: bytearray, left: int, idle_seconds: float, buffer_seconds: float) -> None:
        self.left = left
        self._ahead = ahead
        self._idle_seconds = idle_seconds
        self._buffer_seconds = buffer_seconds

    def fill(self, connection: socket.socket, buffer: memoryview) -> bool:
        """As `Fill`."""
        until = time.monotonic() + self._buffer_seconds
        filled = min(len(self._ahead), len(buffer))
        buffer[:filled] = self._ahead[:filled]
        del self._ahead[:filled]
        while filled < len(buffer) and self.left:
            limit, wait = min((self._idle_seconds,) * 2, (self._buffer_seconds, until - time.monotonic()), key=_second)
            connection.settimeout(max(wait, _POLL_SECONDS))
            try:
                count = connection.recv_into(buffer[filled:], min(len(buffer) - filled, self.left))
            except TimeoutError:
                raise TimeoutError(limit) from None
            except OSError:
                return False
            if not count:
                return False
            filled += count
            self.left -= count
        return filled == len(buffer)


async def send_as_body(protocol: H11Protocol, size: int, parts: Parts, *, begin: Callable[[], Awaitable[None]]) -> bool:
    """Send *parts* as the body of an answer; False where it does not go this way, and nothing was done.

    A connection that breaks is the protocol's to notice.

    Args:
        protocol: Whose application calls this; the answer's end is left to it.
        size: Bytes of all *parts*, as the head says.
        parts: Made in the thread that sends them; a part is used until the next is asked for.
        begin: Sends the head.

    Raises:
        DstackError: What *parts* raised; the connection is ended, for the client waits for more.
    """
    parser, is_whole = protocol.conn, False
    if not isinstance(parser, BodyParser) or not _is_plain(protocol) or not _places.acquire(blocking=False):
        return False
    parser.is_sent_aside = True
    try:
        await begin()
        until = time.monotonic() + PART_SECONDS
        while protocol.transport.get_write_buffer_size() and time.monotonic() < until:
            await asyncio.sleep(_POLL_SECONDS)
        if protocol.cycle.disconnected or protocol.transport.get_write_buffer_size() or protocol.transport.is_closing():
            return True
        parser.send_with_data_passthrough(h11.Data(data=_Sized(size)))  # type: ignore[arg-type]
        is_whole = await _aside(protocol, partial(_send, parts=parts), socket.SHUT_RDWR)
        return True
    finally:
        parser.is_sent_aside = False
        _places.release()
        if not is_whole:
            abort(protocol.transport)
            protocol.cycle.disconnected = True  # else the server misses the end of the answer, and logs an error


def abort(transport: asyncio.Transport) -> None:
    """End a connection at once, also for a thread that reads or writes it."""
    with suppress(OSError), _own_socket(transport) as connection:
        connection.shutdown(socket.SHUT_RDWR)
    transport.abort()


class _Sized:
    """So many bytes that somebody else sends: h11 counts them, as it does for `sendfile`."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def _is_plain(protocol: H11Protocol) -> bool:
    transport = protocol.transport
    return transport.get_extra_info("ssl_object") is None and not transport.is_closing()


def _own_socket(transport: asyncio.Transport) -> socket.socket:
    """Another descriptor of the connection, so that nobody else can close it meanwhile."""
    return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))


async def _aside(protocol: H11Protocol, work: Callable[[socket.socket], Result], how: int) -> Result:
    """Do *work* in a thread; whoever stops waiting stops it, by shutting the connection down."""
    with _own_socket(protocol.transport) as connection:
        working = asyncio.get_running_loop().run_in_executor(_threads, work, connection)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            with suppress(OSError):
                connection.shutdown(how)
            while not working.done():
                # Once more: the thread has the descriptor, and the caller's memory.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([working])
            raise


def _send(connection: socket.socket, *, parts: Parts) -> bool:
    """Whether all of *parts* were sent; they are closed in any case."""
    connection.settimeout(PART_SECONDS)
    with closing(parts):
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                return False
    return True


def _continue_after(protocol: H11Protocol, parser: BodyParser, left: int) -> None:
    """Go on with a parser that was told of the same request with so much of its body left."""
    headers = [(name, value) for name, value in protocol.headers if name not in (_LENGTH, b"expect")]
    request = h11.Request(
        method=protocol.scope["method"],
        target=protocol.scope["raw_path"],
        headers=[*headers, (_LENGTH, str(left).encode())],
    )
    following = BodyParser(parser.header_limit)
    following.receive_data(h11.Connection(h11.CLIENT).send(request) or b"")
    following.next_event()
    if parser.trailing_data[0]:
        following.receive_data(parser.trailing_data[0])
    protocol.conn = protocol.cycle.conn = following
    if not left:
        protocol.handle_events()
