"""Attack: many connections that each have a node keep in memory what their caller does not finish, or does not take."""

from __future__ import annotations

import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dstack.keys.sealing_stream import CHUNK
from dstack.transport.listener import Listener
from replicator.app import replicator_app
from replicator.node import Replicator
from tests.worlds import SECRET, Site, make_handover

SECONDS = 30.0
BUSY = {"error": "body: want at most 25165824 bytes at once from your address, got more", "kind": "ServiceBusyError"}


@contextmanager
def serving(node: Replicator) -> Iterator[int]:
    """The port of *node*."""
    with Listener(replicator_app(node)).running() as listener:
        yield listener.port


def begun(port: int, path: str, body: bytes, *, announced: int | None = None) -> socket.socket:
    """A connection with a request whose body may be longer than what is sent of it."""
    connection = socket.socket()
    # Nothing of what is not read may wait in the kernel.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(SECONDS)
    connection.connect(("127.0.0.1", port))
    length = len(body) if announced is None else announced
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n\r\n".encode() + body)
    return connection


def answered(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """What the node says on it."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def test_readers_that_take_nothing_hold_little(tmp_path: Path, site: Site) -> None:
    """One address has a few large streams at a time; one more is told to come again, and can once another has ended."""
    world = make_handover(tmp_path, site, bytes(16 * CHUNK))
    request = world.request()
    with serving(world.old) as port, ExitStack() as open_ones:
        slow = [open_ones.enter_context(begun(port, "/onboard", request)) for _ in range(8)]
        heads = [each.recv(12) for each in slow]
        with begun(port, "/onboard", request) as another:
            refused = answered(another)
        slow[0].close()
        ends, head = time.monotonic() + SECONDS, b""
        while head != b"HTTP/1.1 200" and time.monotonic() < ends:
            time.sleep(0.05)
            with begun(port, "/onboard", request) as again:
                head = again.recv(12)

    assert [*heads, head] == [b"HTTP/1.1 200"] * 9
    assert refused == (503, BUSY)


def test_pages_of_receipts_that_nobody_takes_hold_little(tmp_path: Path, site: Site) -> None:
    """Large pages are counted as long as their readers have not taken them."""
    world = make_handover(tmp_path, site)
    large = {"role": "sent", "hash": "", "receipt": {}, "simulated_root": True, "evidence": "0" * (10 << 20)}
    (tmp_path / "old" / "receipts" / "large.json").write_text(json.dumps(large))
    asked = b'{"since": 1, "evidence": true}'
    with serving(world.old) as port, ExitStack() as open_ones:
        slow = [open_ones.enter_context(begun(port, "/receipts", asked)) for _ in range(2)]
        heads = [each.recv(12) for each in slow]
        with begun(port, "/receipts", asked) as third:
            refused = answered(third)

    assert (heads, refused) == ([b"HTTP/1.1 200"] * 2, (503, BUSY))


@pytest.mark.parametrize("old_forms", [False, True])
def test_lines_without_an_end_hold_little(tmp_path: Path, site: Site, old_forms: bool) -> None:
    """Large beginnings of answers have a bound in all; a real answer is taken beside them."""
    world = make_handover(tmp_path, site)
    world.new.old_forms = old_forms
    sending = world.old.onboard(world.request())
    real = sending.line.encode() + b"\n" + b"".join(map(bytes, sending.chunks(0)))
    beginning = (b"7" if old_forms else b"{") + b"1" * (4 << 20)
    with serving(world.new) as port, ExitStack() as open_ones:
        many = [
            open_ones.enter_context(begun(port, "/receiveKey", beginning, announced=len(beginning) + 1))
            for _ in range(7)
        ]
        refused, _, _ = select.select(many, [], [], SECONDS)
        with begun(port, "/receiveKey", real) as genuine:
            taken = answered(genuine)
        said = [answered(each) for each in refused]
        for each in many:
            each.close()

    assert said == [(503, BUSY)]
    assert (taken[0], world.new_secure_file.read_bytes()) == (200, SECRET)
