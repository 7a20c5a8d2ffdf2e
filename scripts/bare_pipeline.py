"""The steps that no handover can leave out, and nothing else: what these cores could do at best. For bench_handover.py.

Three programs, as there: one reads the file, seals each MiB and sends it; one passes on what comes; one receives it,
opens each MiB, digests and writes it, and syncs at the end. No HTTP, no event loop, no checks, no records.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIB = 1 << 20
TAG = 16
_AHEAD = 4
_WINDOW = 16


def rate(source: Path, target: Path) -> float:
    """MB/s (10^6 bytes) of a file of whole MiB."""
    size = source.stat().st_size
    programs = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0)) as old, socket.create_server(("127.0.0.1", 0)) as new:
        started: list[SpawnProcess] = [
            programs.Process(target=_send, args=(old, str(source), size // MIB)),
            programs.Process(target=_receive, args=(new, str(target), size // MIB)),
        ]
        for each in started:
            each.start()
        with (
            socket.create_connection(old.getsockname()) as come,
            socket.create_connection(new.getsockname()) as go,
        ):
            # Both have accepted, so both run: what it takes to start them does not count.
            come.recv(1)
            go.recv(1)
            began = time.perf_counter()
            come.sendall(b"\0")
            _pass_on(come, go, size // MIB * (MIB + TAG))
            go.recv(1)
            took = time.perf_counter() - began
        for each in started:
            each.join()
    target.unlink()
    return size / took / 1e6


def _send(listener: socket.socket, path: str, count: int) -> None:
    cipher, descriptor = AESGCM(bytes(32)), os.open(path, os.O_RDONLY)
    content = bytearray(MIB)
    with listener.accept()[0] as connection:
        connection.sendall(b"\0")
        connection.recv(1)

        def sealed() -> Iterator[bytearray]:
            buffers = [bytearray(MIB + TAG) for _ in range(_AHEAD + 2)]
            for number in range(count):
                buffer = buffers[number % len(buffers)]
                os.preadv(descriptor, [content], number * MIB)
                cipher.encrypt_into(number.to_bytes(12, "big"), content, None, buffer)
                yield buffer

        _beside(sealed(), connection.sendall)


def _receive(listener: socket.socket, path: str, count: int) -> None:
    cipher, descriptor = AESGCM(bytes(32)), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    digest, content, numbers = hashlib.sha256(), bytearray(MIB), iter(range(count))
    with listener.accept()[0] as connection:
        connection.sendall(b"\0")

        def received() -> Iterator[bytearray]:
            buffers = [bytearray(MIB + TAG) for _ in range(_AHEAD + 2)]
            for number in range(count):
                buffer = buffers[number % len(buffers)]
                connection.recv_into(buffer, len(buffer), socket.MSG_WAITALL)
                yield buffer

        def store(buffer: bytearray) -> None:
            number = next(numbers)
            cipher.decrypt_into(number.to_bytes(12, "big"), buffer, None, content)
            os.pwrite(descriptor, content, number * MIB)
            digest.update(content)
            if number % _WINDOW == _WINDOW - 1:
                begin = (number + 1 - _WINDOW) * MIB
                os.posix_fadvise(descriptor, begin, _WINDOW * MIB, os.POSIX_FADV_DONTNEED)

        _beside(received(), store)
        os.fsync(descriptor)
        connection.sendall(b"\0")


def _beside(made: Iterator[bytearray], take: Callable[[bytearray], object]) -> None:
    """Take what is made while the next is made in another thread."""
    waiting: queue.Queue[bytearray | None] = queue.Queue(_AHEAD)

    def make() -> None:
        for each in made:
            waiting.put(each)
        waiting.put(None)

    maker = threading.Thread(target=make)
    maker.start()
    while (each := waiting.get()) is not None:
        take(each)
    maker.join()


def _pass_on(come: socket.socket, go: socket.socket, size: int) -> None:
    reading, writing = os.pipe()
    try:
        while size:
            count = left = os.splice(come.fileno(), writing, min(MIB, size))
            while left:
                left -= os.splice(reading, go.fileno(), left)
            size -= count
    finally:
        os.close(reading)
        os.close(writing)
