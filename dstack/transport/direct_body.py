"""A large request body into memory of the caller's, past the parser, which copies what it is given several times.

Only bodies with a `Content-Length` have this way. Afterwards a new parser is given the same request with the length
that is left, so that whatever follows is its own: the end of the body, what the application leaves unread, the next
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LENGTH = b"content-length"


class BodyParser(h11.Connection):
    """The parser of a server, which knows how many bytes of a body with a length are still to come.

    Attributes:
        outstanding: So many; None where the body has no length.
    """

    outstanding: int | None = None

    def __init__(self, header_limit: int) -> None:
        """Take the largest size of a head, in bytes."""
        super().__init__(h11.SERVER, header_limit)
        self.header_limit = header_limit

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As the library's."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.outstanding = next((int(value) for name, value in event.headers if name == _LENGTH), None)
        elif isinstance(event, h11.Data) and self.outstanding is not None:
            self.outstanding -= len(event.data)
        return event


async def fill_from_body(
    protocol: H11Protocol, buffer: memoryview, idle_seconds: float, came: Callable[[int], None]
) -> None:
    """Fill *buffer* with the next bytes of the body that *protocol* is receiving.

    Fewer come than fit where the body or the connection ends, or has no length.

    Args:
        protocol: Whose application calls this, and meanwhile does not ask for the body in another way.
        buffer: Filled from its start.
        idle_seconds: How long nothing may come.
        came: Told of every so many bytes that are in the buffer now.

    Raises:
        TimeoutError: Nothing came.
    """
    filled = _take_parsed(protocol, buffer)
    came(filled)
    parser, cycle = protocol.conn, protocol.cycle
    if not isinstance(parser, BodyParser) or not parser.outstanding or protocol.scope["http_version"] != "1.1":
        return
    if cycle.waiting_for_100_continue or cycle.response_started:
        return
    wanted = min(len(buffer) - filled, parser.outstanding)
    if not wanted or protocol.transport.is_closing():
        return
    filler = _Filler(protocol, buffer[filled : filled + wanted], came)
    try:
        await filler.fill(idle_seconds)
    finally:
        if filler.filled:
            _continue_after(protocol, parser, parser.outstanding - filler.filled)


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


def _take_parsed(protocol: H11Protocol, buffer: memoryview) -> int:
    """What came before and waits for the application."""
    body = protocol.cycle.body
    count = min(len(body), len(buffer))
    buffer[:count] = memoryview(body)[:count]
    del body[:count]
    return count


class _Filler(asyncio.BufferedProtocol):
    """Stands in for *protocol* until *buffer* is full."""

    def __init__(self, protocol: H11Protocol, buffer: memoryview, came: Callable[[int], None]) -> None:
        self.filled = 0
        self._came = came
        self._protocol = protocol
        self._buffer = buffer
        self._ended = asyncio.Event()
        self._idle_seconds = 0.0
        self._limit: asyncio.Timeout | None = None

    async def fill(self, idle_seconds: float) -> None:
        """Return when the buffer is full or the connection has ended.

        Raises:
            TimeoutError: Nothing came for so many seconds.
        """
        transport = self._protocol.transport
        self._idle_seconds = idle_seconds
        transport.set_protocol(self)
        try:
            async with asyncio.timeout(idle_seconds) as self._limit:
                self._protocol.flow.resume_reading()
                await self._ended.wait()
        finally:
            transport.set_protocol(self._protocol)
            if not transport.is_closing():
                self._protocol.flow.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many came."""
        self.filled += nbytes
        self._came(nbytes)
        if self.filled == len(self._buffer):
            self._protocol.flow.pause_reading()
            self._ended.set()
        elif self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who this stands in for, and stop waiting."""
        self._protocol.connection_lost(exc)
        self._ended.set()

    def pause_writing(self) -> None:
        """As who this stands in for."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """As who this stands in for."""
        self._protocol.resume_writing()
