"""A large request body into memory of the caller's, past the parser, which copies what it is given several times.

Only bodies with a `Content-Length` have this way. The parser is told how much was taken, so that whatever follows (the
end of the body, what the application leaves unread, the next request) is its own again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from h11._readers import ContentLengthReader
from uvicorn.protocols.http.h11_impl import H11Protocol


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
    reader = protocol.conn._reader
    if not isinstance(reader, ContentLengthReader) or protocol.cycle.waiting_for_100_continue:
        return
    wanted = min(len(buffer) - filled, reader._remaining)
    if not wanted or protocol.transport.is_closing():
        return
    filler = _Filler(protocol, buffer[filled : filled + wanted], came)
    try:
        await filler.fill(idle_seconds)
    finally:
        reader._remaining -= filler.filled
        if not reader._remaining:
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
