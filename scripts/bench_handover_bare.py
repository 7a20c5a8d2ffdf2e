"""The bare steps of a stream in three programs: what a handover could reach here if it did nothing else.

One reads and seals, one passes on inside the kernel, one opens, digests and writes past the page cache while the next
chunk comes. No HTTP, no evidence, no chain, no custody. Used by bench_handover.py.
"""

from __future__ import annotations

import fcntl
import mmap
import multiprocessing
import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIB = 1 << 20
_TAG = 16
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


def _send(address: tuple[str, int], path: Path, chunks: int) -> None:
    cipher, content, sealed = AESGCM(_KEY), bytearray(MIB), bytearray(MIB + _TAG)
    with socket.create_connection(address) as connection, path.open("rb") as source:
        for number in range(chunks):
            source.readinto(content)
            cipher.encrypt_into(_nonce(number), content, None, sealed)
            connection.sendall(sealed)


def _carry(listener: socket.socket, address: tuple[str, int]) -> None:
    out_of, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, MIB)
    # The receiver's clock begins when somebody connects.
    source, _ = listener.accept()
    with source, socket.create_connection(address) as target:
        while count := os.splice(source.fileno(), into, MIB):
            while count:
                count -= os.splice(out_of, target.fileno(), count)


def _receive(listener: socket.socket, to: Path, chunks: int, answer: Connection) -> None:
    cipher, digest = AESGCM(_KEY), blake3()
    sealed = memoryview(bytearray(MIB + _TAG))
    contents = [memoryview(mmap.mmap(-1, MIB)) for _ in range(2)]
    descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    connection, _ = listener.accept()
    began = time.perf_counter()
    with connection, ThreadPoolExecutor(1) as other:
        writing: Future[int] | None = None
        for number in range(chunks):
            filled = 0
            while filled < len(sealed):
                count = connection.recv_into(sealed[filled:])
                if not count:
                    raise EOFError(f"chunk {number}: the stream ended early")
                filled += count
            content = contents[number % 2]
            cipher.decrypt_into(_nonce(number), sealed, None, content)
            digest.update(content)
            if writing is not None:
                writing.result()
            writing = other.submit(os.pwrite, descriptor, content, number * MIB)
        if writing is not None:
            writing.result()
    os.fsync(descriptor)
    answer.send(time.perf_counter() - began)
    os.close(descriptor)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
