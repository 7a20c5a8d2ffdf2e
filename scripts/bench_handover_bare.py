"""The bare steps of a stream in three programs: what a handover could reach here if it did nothing else.

One reads and seals, one passes on inside the kernel, one opens, digests and writes past the page cache, two pieces at
once while the next ones come. No HTTP, no evidence, no chain, no custody. Used by bench_handover.py.
"""

from __future__ import annotations

import fcntl
import mmap
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dstack.transport.pacing import connect

MIB = 1 << 20
_TAG = 16
_TOGETHER, _AT_ONCE, _BUFFERS = 2, 2, 4
_KEY = bytes(32)


def bare_seconds(path: Path, to: Path) -> float:
    """Seconds from the first byte that leaves to the last one that is synced; *to* is removed.

    Args:
        path: A whole number of MiB.
        to: Where it goes.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    chunks = path.stat().st_size // MIB
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        programs = [
            spawn.Process(target=_receive, args=(second, to, chunks, theirs)),
            spawn.Process(target=_carry, args=(first, second.getsockname())),
            spawn.Process(target=_send, args=(first.getsockname(), path, chunks)),
        ]
        for program in programs:
            program.start()
    # Here nothing stays open that one of them would wait for after another has failed.
    theirs.close()
    for program in programs:
        program.join()
    to.unlink(missing_ok=True)
    return float(ours.recv())


def disk_seconds(size_mib: int, to: Path) -> float:
    """Seconds to write so much directly, as `_receive` does, and to sync it; *to* is removed."""
    piece = mmap.mmap(-1, _TOGETHER * MIB)
    piece.write(os.urandom(len(piece)))
    with piece, _direct(to, size_mib * MIB) as descriptor, ThreadPoolExecutor(_AT_ONCE) as writers:

        def write(first: int) -> None:
            os.pwrite(descriptor, memoryview(piece)[: min(_TOGETHER, size_mib - first) * MIB], first * MIB)

        began = time.perf_counter()
        for _ in writers.map(write, range(0, size_mib, _TOGETHER)):
            pass
        os.fsync(descriptor)
        ended = time.perf_counter()
    to.unlink()
    return ended - began


def _send(address: tuple[str, int], path: Path, chunks: int) -> None:
    cipher, content, sealed = AESGCM(_KEY), mmap.mmap(-1, MIB), bytearray(MIB + _TAG)
    with connect(*address, timeout=None) as connection, path.open("rb", buffering=0) as source:
        for number in range(chunks):
            source.readinto(content)
            cipher.encrypt_into(_nonce(number), content, None, sealed)
            connection.sendall(sealed)


def _carry(listener: socket.socket, address: tuple[str, int]) -> None:
    out_of, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, MIB)
    # The receiver's clock begins when somebody connects.
    source, _ = listener.accept()
    with source, connect(*address, timeout=None) as target:
        while count := os.splice(source.fileno(), into, MIB):
            while count:
                count -= os.splice(out_of, target.fileno(), count)


def _receive(listener: socket.socket, to: Path, chunks: int, answer: Connection) -> None:
    cipher, digest = AESGCM(_KEY), blake3()
    sealed = memoryview(bytearray(MIB + _TAG))
    buffers = [memoryview(mmap.mmap(-1, _TOGETHER * MIB)) for _ in range(_BUFFERS)]
    connection, _ = listener.accept()
    began = time.perf_counter()
    with connection, _direct(to, chunks * MIB) as descriptor, ThreadPoolExecutor(_AT_ONCE) as writers:
        writing: dict[int, Future[int]] = {}
        for first in range(0, chunks, _TOGETHER):
            which, numbers = first // _TOGETHER % _BUFFERS, range(first, min(first + _TOGETHER, chunks))
            if which in writing:
                writing[which].result()
            for place, number in enumerate(numbers):
                _fill(sealed, connection)
                content = buffers[which][place * MIB : (place + 1) * MIB]
                cipher.decrypt_into(_nonce(number), sealed, None, content)
                digest.update(content)
            piece = buffers[which][: len(numbers) * MIB]
            writing[which] = writers.submit(os.pwrite, descriptor, piece, first * MIB)
        for each in writing.values():
            each.result()
        os.fsync(descriptor)
        answer.send(time.perf_counter() - began)


@contextmanager
def _direct(path: Path, size: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
        yield descriptor
    finally:
        os.close(descriptor)


def _fill(buffer: memoryview, connection: socket.socket) -> None:
    filled = 0
    while filled < len(buffer):
        count = connection.recv_into(buffer[filled:])
        if not count:
            raise EOFError("the stream ended early")
        filled += count


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
