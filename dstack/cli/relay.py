"""Passing bytes on from one connection to another: inside the kernel where both are plain sockets, else by a buffer."""

from __future__ import annotations

import fcntl
import http.client
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PIECE = 1 << 20


class SourceBrokeError(Exception):
    """The side that sends ended early."""


def pass_on(
    connection: http.client.HTTPConnection,
    source: http.client.HTTPResponse,
    target: socket.socket,
    size: int,
    *,
    timeout: float,
    passed: Callable[[int], None],
) -> None:
    """Send the next *size* bytes of a response's body to *target*.

    Args:
        connection: Whose response *source* is; it is of no further use.
        source: With a length, not in chunks.
        target: A connected socket.
        size: How many bytes.
        timeout: Seconds that any one wait may take.
        passed: Called with how many have been passed on.

    Raises:
        SourceBrokeError: The response ended early.
        OSError: *target* broke, or does not take more.
    """
    sent = 0
    plain = connection.sock
    if not hasattr(os, "splice") or plain is None or ssl.SSLSocket in (type(plain), type(target)):
        for piece in _pieces(source, size):
            target.sendall(piece)
            sent += len(piece)
            passed(sent)
        return
    # What was read ahead with the headers comes first.
    ahead = _read_ahead(source)[:size]
    if ahead:
        target.sendall(source.read(len(ahead)))
        sent += len(ahead)
    passed(sent)
    for count in _spliced(plain, target, size - sent, timeout):
        sent += count
        passed(sent)


def _pieces(source: http.client.HTTPResponse, size: int) -> Iterator[memoryview]:
    buffer, left = memoryview(bytearray(PIECE)), size
    while left:
        try:
            count = source.readinto(buffer[: min(PIECE, left)])
        except (OSError, http.client.HTTPException) as exc:
            raise SourceBrokeError(str(exc) or type(exc).__name__) from exc
        if not count:
            raise SourceBrokeError("the stream ended early")
        left -= count
        yield buffer[:count]


def _spliced(source: socket.socket, target: socket.socket, size: int, timeout: float) -> Iterator[int]:
    with _waiting(source, socket.SO_RCVTIMEO, timeout), _waiting(target, socket.SO_SNDTIMEO, timeout), _pipe() as pipe:
        left = size
        while left:
            try:
                count = os.splice(source.fileno(), pipe[1], min(PIECE, left))
            except OSError as exc:
                raise SourceBrokeError(exc.strerror or str(exc)) from exc
            if not count:
                raise SourceBrokeError("the stream ended early")
            rest = count
            while rest:
                rest -= os.splice(pipe[0], target.fileno(), rest)
            left -= count
            yield count


@contextmanager
def _waiting(end: socket.socket, option: int, timeout: float) -> Iterator[None]:
    """Have the kernel wait at *end*, rather than Python, at most *timeout* seconds."""
    before = end.gettimeout()
    end.settimeout(None)
    end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(timeout), 0))
    try:
        yield
    finally:
        end.settimeout(before)


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        with suppress(OSError):  # the limit of a user; smaller pieces do as well
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIECE)
        yield ends
    finally:
        for end in ends:
            os.close(end)


def _read_ahead(source: http.client.HTTPResponse) -> bytes:
    """What the response's reader holds already."""
    return source.fp.peek() if source.fp is not None else b""
