"""Attack: connections are cut at chosen bytes: inside chunks, between them, and a byte beside.

The new node writes some chunks at once while the next ones come and are opened: that shows neither in where a transfer
goes on, nor in what is stored.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import http.client
import json
import os
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dstack.errors import MessageMalformedError
from dstack.keys.sealing import TAG_SIZE
from dstack.keys.sealing_stream import CHUNK
from dstack.transport.direct_body import Fill
from dstack.transport.listener import Listener
from replicator import uploads
from replicator.app import _feed, replicator_app
from replicator.node import Replicator
from replicator.write_behind import TOGETHER
from tests.worlds import Handover, Site, make_handover, make_node

SEALED = CHUNK + TAG_SIZE
CHUNKS = 35
CONTENT = b"".join(number.to_bytes(4, "big") * (CHUNK // 4) for number in range(CHUNKS - 1)) + b"end"
SECONDS = 60.0


@contextmanager
def serving(node: Replicator) -> Iterator[int]:
    """The port of *node*."""
    with Listener(replicator_app(node)).running() as listener:
        yield listener.port


def opened(port: int, line: bytes, size: int, first: int) -> socket.socket:
    """A connection on which round 3 has begun: *size* bytes of chunks from *first* on are announced."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    head = f"POST /receiveKey?from={first} HTTP/1.1\r\nHost: node\r\nContent-Length: {len(line) + size}\r\n\r\n"
    connection.sendall(head.encode() + line)
    return connection


def answered(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """What the node says on it."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def cut(connection: socket.socket, *, reset: bool) -> None:
    """Close it when all that was sent has arrived in the other kernel; with RST or in order."""
    ends = time.monotonic() + SECONDS
    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
        assert time.monotonic() < ends
        time.sleep(0.005)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def goes_on_with(port: int, line: bytes) -> int:
    """The chunk that the node wants next, asked as any carrier may: with an answer and no chunk."""
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        with opened(port, line, 0, 0) as connection:
            code, body = answered(connection)
        assert code == 409
        if body["error"] != "answer: it is being received on another connection":
            said, _, number = body["error"].rpartition(" ")
            assert said == f"stream: want {CHUNKS} chunks, got {number}; go on with chunk"
            return int(number)
        time.sleep(0.005)
    raise AssertionError("the cut connection still holds the transfer")


@pytest.fixture
def world(tmp_path: Path, site: Site) -> Handover:
    """Content of many chunks and a piece."""
    return make_handover(tmp_path, site, CONTENT)


@pytest.fixture
def request_document(world: Handover) -> bytes:
    """Round 1."""
    return world.request()


@pytest.fixture
def parts(world: Handover, request_document: bytes) -> tuple[bytes, bytes]:
    """The line, and all sealed chunks in one."""
    sending = world.old.onboard(request_document)
    return sending.line.encode() + b"\n", b"".join(map(bytes, sending.chunks(0)))


def require_arrived(world: Handover) -> None:
    """The content is there, whole, with one receipt at each side that is the same, and nothing is left over."""
    folder = world.new_secure_file.parent
    assert world.new_secure_file.read_bytes() == CONTENT
    assert world.new_secure_file.stat().st_mode & 0o777 == 0o600
    (sent,), (received,) = world.receipts("old"), world.receipts("new")
    assert sent["receipt"] == received["receipt"]
    assert sorted(each.name for each in folder.glob("secure-file*")) == ["secure-file", "secure-file.custody.json"]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(4 * SEALED + 1, id="first-byte-of-a-chunk"),
        pytest.param(5 * SEALED, id="between-chunks"),
        pytest.param(6 * SEALED - 1, id="all-but-a-byte-of-a-chunk"),
        pytest.param(6 * SEALED + SEALED // 2, id="middle-of-a-chunk"),
        pytest.param(7 * SEALED + CHUNK, id="all-but-the-tag"),
        pytest.param(8 * SEALED - 1, id="a-byte-before-the-next-chunk"),
        pytest.param(32 * SEALED, id="late"),
        pytest.param(34 * SEALED + 18, id="a-byte-before-the-end"),
    ],
)
def test_a_cut_costs_no_more_than_the_chunk_it_fell_into(
    world: Handover, parts: tuple[bytes, bytes], at: int, reset: bool
) -> None:
    """Whole chunks before the cut are kept, and the rest completes the content."""
    line, sealed = parts
    with serving(world.new) as port:
        connection = opened(port, line, len(sealed), 0)
        connection.sendall(sealed[:at])
        cut(connection, reset=reset)

        first = goes_on_with(port, line)
        assert first == at // SEALED
        assert not world.new_secure_file.exists()
        with opened(port, line, len(sealed) - first * SEALED, first) as connection:
            connection.sendall(sealed[first * SEALED :])
            code, _ = answered(connection)

    assert code == 200
    require_arrived(world)


def test_one_cut_after_another_adds_up(world: Handover, parts: tuple[bytes, bytes]) -> None:
    """Each connection brings some chunks and a part; some carriers go on too early, and what came is passed over."""
    line, sealed = parts
    first, early = 0, 0
    with serving(world.new) as port:
        for chunks in (1.5, 2.25, 3, 0.5, 4.75, 5.5, 9.5, 7.25):
            begin = max(first - early, 0)
            connection = opened(port, line, len(sealed) - begin * SEALED, begin)
            connection.sendall(sealed[begin * SEALED : first * SEALED + int(chunks * SEALED)])
            cut(connection, reset=early % 2 == 1)
            first += int(chunks)
            early = (early + 1) % 4
            assert goes_on_with(port, line) == first
        with opened(port, line, len(sealed) - first * SEALED, first) as connection:
            connection.sendall(sealed[first * SEALED :])
            code, _ = answered(connection)

    assert code == 200
    require_arrived(world)


def test_a_carrier_that_falls_silent_inside_a_chunk_loses_nothing(
    world: Handover, parts: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told so, and the whole chunks are kept as if it had closed."""
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.5)
    line, sealed = parts
    with serving(world.new) as port:
        with opened(port, line, len(sealed), 0) as connection:
            connection.sendall(sealed[: 6 * SEALED + 7])
            code, body = answered(connection)
        first = goes_on_with(port, line)
        monkeypatch.undo()
        with opened(port, line, len(sealed) - first * SEALED, first) as connection:
            connection.sendall(sealed[first * SEALED :])
            last, _ = answered(connection)

    assert (code, body["error"]) == (400, "body: want more of it within 0.5 s, got too little")
    assert (first, last) == (6, 200)
    require_arrived(world)


def test_time_that_ends_with_the_last_byte_of_a_chunk_leaves_nobody_at_work(
    world: Handover, parts: tuple[bytes, bytes]
) -> None:
    """A chunk that is whole when the time ends is kept before the transfer is free for another connection."""
    line, sealed = parts

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield

    async def late(_ahead: bytearray, work: Callable[[Fill], None], **_limits: float) -> bool:
        numbers = iter(range(4))

        def fill(buffer: memoryview) -> bool:
            number = next(numbers, None)
            if number is None:
                raise TimeoutError(SECONDS)
            buffer[:] = sealed[number * SEALED : (number + 1) * SEALED]
            return True

        await asyncio.to_thread(work, fill)
        return True

    async def feed() -> int:
        delivery = world.new.receive(line.rstrip())
        with pytest.raises(MessageMalformedError, match="want more of it"):
            await _feed(uploads.Upload(nothing(), old_forms=False, receiver=late), delivery)
        return delivery.next_chunk

    assert asyncio.run(feed()) == 4


@pytest.mark.parametrize("full_at", [0, TOGETHER, 2 * TOGETHER, 3 * TOGETHER])
def test_a_disk_that_is_full_for_a_moment_leaves_no_gap(
    world: Handover, parts: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """Chunks that were opened after those which the disk refused are not written in their place."""
    line, sealed = parts
    write, ends = os.pwrite, full_at * CHUNK

    def full(descriptor: int, content: bytes | memoryview, offset: int) -> int:
        nonlocal ends
        if offset == ends:
            ends = -1
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with serving(world.new) as port:
        with opened(port, line, len(sealed), 0) as connection:
            connection.sendall(sealed[: 14 * SEALED])
            connection.shutdown(socket.SHUT_WR)
            code, body = answered(connection)
        first = goes_on_with(port, line)
        with opened(port, line, len(sealed) - first * SEALED, first) as connection:
            connection.sendall(sealed[first * SEALED :])
            last, _ = answered(connection)

    assert (code, body["error"]) == (409, "secure file: cannot be written: No space left on device")
    assert (first, last) == (full_at, 200)
    require_arrived(world)


@pytest.mark.parametrize(
    ("begins", "changes", "refused"),
    [
        pytest.param(6 * SEALED + 77, None, 6, id="where-the-bytes-broke"),
        pytest.param(7 * SEALED, None, 6, id="another-chunk"),
        pytest.param(6 * SEALED, 8 * SEALED + 9, 8, id="a-changed-byte"),
    ],
)
def test_what_does_not_follow_the_cut_is_refused(
    world: Handover, parts: tuple[bytes, bytes], begins: int, changes: int | None, refused: int
) -> None:
    """Neither the rest of the cut chunk, nor another one, nor a changed one is taken; what was good before it is."""
    line, sealed = parts
    wrong = bytearray(sealed)
    if changes is not None:
        wrong[changes] ^= 1
    with serving(world.new) as port:
        connection = opened(port, line, len(sealed), 0)
        connection.sendall(sealed[: 6 * SEALED + 77])
        cut(connection, reset=False)
        assert goes_on_with(port, line) == 6
        with opened(port, line, len(sealed) - 6 * SEALED, 6) as connection:
            connection.sendall(wrong[begins : begins + 8 * SEALED])
            code, body = answered(connection)
        assert goes_on_with(port, line) == refused
        with opened(port, line, len(sealed) - refused * SEALED, refused) as connection:
            connection.sendall(sealed[refused * SEALED :])
            last, _ = answered(connection)

    assert (code, body["error"]) == (409, f"chunk {refused}: not of this stream, not in its place, or changed")
    assert last == 200
    require_arrived(world)


def test_a_restarted_old_node_goes_on(world: Handover, request_document: bytes, parts: tuple[bytes, bytes]) -> None:
    """It has lost the stream's key and seals the rest with another; what came before stays good."""
    line, sealed = parts
    with serving(world.new) as port:
        connection = opened(port, line, len(sealed), 0)
        connection.sendall(sealed[: 9 * SEALED + SEALED // 3])
        cut(connection, reset=True)
        first = goes_on_with(port, line)
        again = make_node(
            world.folder / "old", world.old_machine, world.site, world.chain, world.clock, seed=b"after the restart"
        )
        sending = again.onboard(request_document)
        rest = b"".join(map(bytes, sending.chunks(first)))
        with opened(port, sending.line.encode() + b"\n", len(rest), first) as connection:
            connection.sendall(rest)
            code, receipt = answered(connection)

    assert (first, code, receipt) == (9, 200, sending.receipt.members())
    assert rest[:SEALED] != sealed[9 * SEALED : 10 * SEALED]
    assert world.new_secure_file.read_bytes() == CONTENT


@pytest.mark.parametrize("first", [0, 5, 30])
def test_the_old_node_serves_any_chunk_again_after_a_cut(
    world: Handover, request_document: bytes, parts: tuple[bytes, bytes], first: int
) -> None:
    """Readers go away inside chunks; the same request gets the same bytes from any chunk on, and no file stays open."""
    line, sealed = parts
    path = world.folder / "old" / "secure-file"
    with serving(world.old) as port:
        for taken in (SEALED // 2, 3 * SEALED + 1, 2 * SEALED):
            with asking(port, request_document, 0) as response:
                assert response.read(len(line) + taken) == line + sealed[:taken]
        with asking(port, request_document, first) as response:
            answer = response.read()
        left = none_open(path)

    assert answer == line + sealed[first * SEALED :]
    assert left == 0


@contextmanager
def asking(port: int, request: bytes, first: int) -> Iterator[http.client.HTTPResponse]:
    """Round 2 of an old node, from chunk *first* on; afterwards the connection is reset."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("POST", f"/onboard?from={first}", request)
    held = connection.sock
    response = connection.getresponse()
    assert response.status == 200
    try:
        yield response
    finally:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        response.close()
        connection.close()


def none_open(path: Path) -> int:
    """How many descriptors of *path* this process has left, when it had time to close them."""
    ends = time.monotonic() + 10
    while (left := open_here(path)) and time.monotonic() < ends:
        time.sleep(0.05)
    return left


def open_here(path: Path) -> int:
    """How many descriptors of *path* this process has."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += descriptor.readlink() == path
        except FileNotFoundError:
            continue
    return count
