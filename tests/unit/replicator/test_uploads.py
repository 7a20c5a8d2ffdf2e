"""The body of round 3 as a stranger may send it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dstack.errors import MessageMalformedError
from replicator import uploads
from replicator.uploads import Upload


async def trickle(first: bytes) -> AsyncIterator[bytes]:
    """*first*, then for ever a byte now and then, each of them well in time."""
    yield first
    while True:
        await asyncio.sleep(0.01)
        yield b"x"


@pytest.mark.parametrize("first", [b"", b"  ", b'{"version"', b"7b"])
def test_a_line_that_comes_byte_by_byte_has_an_end(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends a byte now and then does not hold a connection for ever, in either form."""
    monkeypatch.setattr(uploads, "LINE_SECONDS", 0.1)

    with pytest.raises(MessageMalformedError, match=r"body: want more of it within 0\.1 s, got too little"):
        asyncio.run(Upload(trickle(first), old_forms=True).line())


def test_a_chunk_that_comes_byte_by_byte_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holds after the line, for each chunk."""
    monkeypatch.setattr(uploads, "BUFFER_SECONDS", 0.1)
    upload = Upload(trickle(b"{}\n"), old_forms=False)

    async def line_then_chunk() -> None:
        assert await upload.line() == b"{}"
        await upload.fill(memoryview(bytearray(1 << 20)))

    with pytest.raises(MessageMalformedError, match=r"body: want more of it within 0\.1 s, got too little"):
        asyncio.run(line_then_chunk())


def test_what_comes_ahead_comes_first() -> None:
    """What came with the line and later pieces fill buffers in order; the end says that there is no more."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"{}\nab", b"c", b"defgh", b"ij"):
            yield piece

    async def line_then_buffers() -> list[tuple[bool, bytes]]:
        upload, filled = Upload(pieces(), old_forms=False), []
        await upload.line()
        for size in (4, 4, 4):
            buffer = memoryview(bytearray(size))
            filled.append((await upload.fill(buffer), bytes(buffer)))
        return filled

    assert asyncio.run(line_then_buffers()) == [(True, b"abcd"), (True, b"efgh"), (False, b"ij\0\0")]


@pytest.mark.parametrize("limit", [30.0, 120.0])
def test_a_receiver_that_waits_too_long_is_told_with_its_limit(limit: float) -> None:
    """As where the pieces come by the stream."""

    async def late(_ahead: bytearray, _work: object, **_limits: float) -> bool:
        raise TimeoutError(limit)

    upload = Upload(trickle(b"{}\n"), old_forms=False, receiver=late)
    with pytest.raises(MessageMalformedError, match=rf"body: want more of it within {limit:g} s"):
        asyncio.run(upload.aside(lambda _fill: None))
