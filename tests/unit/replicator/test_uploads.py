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


def test_what_came_of_a_buffer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole chunks in a buffer that never became full are not lost."""
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.05)

    async def silence() -> AsyncIterator[bytes]:
        yield b"{}\nabc"
        yield b"def"
        await asyncio.sleep(60)

    async def line_then_buffer() -> None:
        await upload.line()
        await upload.fill(memoryview(bytearray(100)))

    upload = Upload(silence(), old_forms=False)
    with pytest.raises(MessageMalformedError, match="body: want more of it within"):
        asyncio.run(line_then_buffer())
    assert upload.filled == 6


def test_a_buffer_has_time_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four MiB may take four times as long as one."""
    monkeypatch.setattr(uploads, "BUFFER_SECONDS", 0.05)
    upload = Upload(trickle(b"{}\n"), old_forms=False)

    async def line_then_buffer() -> None:
        await upload.line()
        await upload.fill(memoryview(bytearray((3 << 20) + 1)))

    with pytest.raises(MessageMalformedError, match=r"body: want more of it within 0\.2 s"):
        asyncio.run(line_then_buffer())
