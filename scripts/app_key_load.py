"""Load on a KMS: GetAppKey over TLS, from a process of its own. Reads one JSON object, prints one; see bench_app_key.

It speaks HTTP by hand, so that what it costs is little beside what the KMS costs.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstack.transport.tls import client_context

_LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Target:
    """Where the KMS is, what it is asked, and who may ask: one TLS context for each caller."""

    port: int
    request: bytes
    contexts: tuple[ssl.SSLContext, ...]

    def connect(self, caller: int) -> ssl.SSLSocket:
        """A connection of this caller."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=_LIMIT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.contexts[caller % len(self.contexts)].wrap_socket(plain, server_hostname="localhost")

    def ask(self, connection: ssl.SSLSocket) -> None:
        """One request and its whole answer.

        Raises:
            OSError: The answer is not the keys.
        """
        connection.sendall(self.request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += _received(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        while len(body) < size:
            body += _received(connection)
        if not head.startswith(b"HTTP/1.1 200"):
            raise OSError(f"want status 200, got {head[:40]!r} {body[:200]!r}")


def _received(connection: ssl.SSLSocket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise OSError("the connection ended")
    return data


def run(target: Target, *, mode: str, connections: int, seconds: float, rate: float | None) -> dict[str, Any]:
    """Ask from several threads.

    Args:
        target: Whom.
        mode: "kept": one connection for each thread; "fresh": a connection, with another caller, for each request.
        connections: How many threads.
        seconds: For how long.
        rate: Requests a second that are due, however long answers take; None for as fast as they come.

    Returns:
        `count`, `seconds`, and milliseconds from when each request was due to its answer: `p50` and `p99`.
    """
    taken: list[float] = []
    failures: list[str] = []
    lock, began = threading.Lock(), time.perf_counter()
    end = began + seconds
    turns = iter(range(1 << 40))

    def due() -> tuple[int, float] | None:
        with lock:
            turn = next(turns)
        at = began + turn / rate if rate else time.perf_counter()
        if at >= end:
            return None
        time.sleep(max(0.0, at - time.perf_counter()))
        return turn, at

    def work(number: int) -> None:
        try:
            kept = target.connect(number) if mode == "kept" else None
            while (next_due := due()) is not None:
                turn, at = next_due
                connection = kept or target.connect(turn)
                target.ask(connection)
                if kept is None:
                    connection.close()
                with lock:
                    taken.append(time.perf_counter() - at)
        except OSError as exc:
            failures.append(str(exc))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"load: {failures[0]}")
    return {"count": len(taken), "seconds": time.perf_counter() - began, **percentiles(taken)}


def percentiles(taken: list[float]) -> dict[str, float]:
    """Milliseconds below which half, and 99 of 100, are."""
    ordered = sorted(taken)
    at = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))
    }
    return {name: round(value * 1000, 2) for name, value in at.items()}


def main() -> None:
    """Do what standard input says."""
    order = json.load(sys.stdin)
    contexts = []
    for file in order["identities"]:
        context = client_context(ca_pem=order["ca_pem"])
        context.load_cert_chain(Path(file))
        contexts.append(context)
    body = json.dumps({"api_version": 1, "vm_config": order["vm_config"]}).encode()
    head = f"POST /prpc/GetAppKey?json HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    target = Target(order["port"], head.encode() + body, tuple(contexts))
    figures = run(
        target,
        mode=order["mode"],
        connections=order["connections"],
        seconds=order["seconds"],
        rate=order.get("rate"),
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
