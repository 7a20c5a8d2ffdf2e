"""The body of `/receiveKey` as it comes: a line, then bytes into buffers. Bounded in size and time.

Whoever sends a little now and then holds a connection no longer than whoever sends nothing: the line and each buffer
have a time of their own to be whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from dstack.errors import HandoverRefusedError, MessageMalformedError
from dstack.transport.direct_body import Fill
from replicator.answers import MAX_ANSWER
from replicator.old_forms import MAX_SEALED_TEXT, answer_in_text

IDLE_SECONDS = 30.0
LINE_SECONDS = 60.0
BUFFER_SECONDS = 120.0
"""For a buffer, which holds one chunk at most."""


Hold = Callable[[int], None]


class Receiver(Protocol):
    """As `direct_body.receive_body`, of one connection."""

    def __call__(
        self, ahead: bytearray, work: Callable[[Fill], None], *, idle_seconds: float, buffer_seconds: float
    ) -> Awaitable[bool]:
        """Do *work* on the rest of the body."""
        ...


class Upload:
    """Reads one body.

    Args:
        stream: The pieces as they come from the network.
        old_forms: Take the text of the original service.
        receiver: Receives past *stream*, where the server has such a way. What it leaves comes from *stream*.
        hold: Told how many bytes are kept in memory; raises where there is no room for them.
    """

    def __init__(
        self,
        stream: AsyncIterator[bytes],
        *,
        old_forms: bool,
        receiver: Receiver | None = None,
        hold: Hold = lambda _size: None,
    ) -> None:
        self.hold = hold
        self._stream = stream
        self._old_forms = old_forms
        self._receiver = receiver
        self._buffer = bytearray()
        self._ended = False
        self.is_old_form = False
        """Whether the line came as the text of the original service."""

    async def line(self) -> bytes:
        """Everything before the first line feed, or the whole body where there is none.

        Raises:
            MessageMalformedError: It is longer than an answer can be, or does not come.
            HandoverRefusedError: It is of the old form, which is not taken here.
            ServiceBusyError: Lines take too much memory just now.
        """
        async with _within(LINE_SECONDS):
            return await self._line()

    async def _line(self) -> bytes:
        while not self._buffer.lstrip() and await self._more():
            if len(self._buffer) > MAX_ANSWER and not self._buffer.lstrip():
                raise MessageMalformedError("answer: want a document, got white space")
        if bytes(self._buffer.lstrip()[:1]) not in (b"{", b""):
            return await self._old_line()
        while (end := self._buffer.find(b"\n")) < 0 and await self._more():
            if len(self._buffer) > MAX_ANSWER + 2:
                raise MessageMalformedError(f"answer: want at most {MAX_ANSWER} bytes before a line feed, got more")
        line = bytes(self._buffer[:end] if end >= 0 else self._buffer)
        del self._buffer[: end + 1 if end >= 0 else len(self._buffer)]
        return line

    async def aside(self, work: Callable[[Fill], None]) -> bool:
        """Do *work* on the rest of the body past the stream, where that is to be had; whether it was done.

        Raises:
            MessageMalformedError: What *work* wanted did not come.
        """
        if self._receiver is None:
            return False
        try:
            return await self._receiver(self._buffer, work, idle_seconds=IDLE_SECONDS, buffer_seconds=BUFFER_SECONDS)
        except TimeoutError as exc:
            raise _late(exc.args[0]) from exc

    async def fill(self, buffer: memoryview) -> bool:
        """Fill *buffer* with the next bytes; says whether there were enough before the end of the body.

        Raises:
            MessageMalformedError: They do not come.
        """
        async with _within(BUFFER_SECONDS):
            filled = 0
            while filled < len(buffer):
                if not self._buffer and not await self._more():
                    return False
                used = min(len(self._buffer), len(buffer) - filled)
                buffer[filled : filled + used] = self._buffer[:used]
                del self._buffer[:used]
                filled += used
            return True

    async def require_end(self) -> None:
        """See that nothing follows.

        Raises:
            MessageMalformedError: Something does.
        """
        while not self._buffer and await self._more():
            pass
        if self._buffer:
            raise MessageMalformedError("stream: want nothing after the last chunk, got more")

    async def _old_line(self) -> bytes:
        if not self._old_forms:
            raise HandoverRefusedError(
                "receiveKey: want an answer of version 2, got an old form; protocol.old_forms is off"
            )
        while await self._more():
            if len(self._buffer) > MAX_SEALED_TEXT:
                raise MessageMalformedError(f"receiveKey: want at most {MAX_SEALED_TEXT} characters, got more")
        self.is_old_form = True
        line, chunks = answer_in_text(bytes(self._buffer))
        self._buffer = bytearray(chunks)
        return line

    async def _more(self) -> bool:
        """Read a piece into the buffer; says whether there was one."""
        piece = await self._piece()
        self._buffer += piece or b""
        self.hold(len(self._buffer))
        return piece is not None

    async def _piece(self) -> bytes | None:
        if self._ended:
            return None
        async with _within(IDLE_SECONDS):
            piece = await anext(self._stream, None)
        self._ended = piece is None
        return piece


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        raise _late(seconds) from exc


def _late(seconds: float) -> MessageMalformedError:
    return MessageMalformedError(f"body: want more of it within {seconds:g} s, got too little")
