"""Load on a KMS: GetAppKey over TLS, from a process of its own. Reads one JSON object, prints one; see app_key_site.

It speaks HTTP by hand, so that what it costs is little beside what the KMS costs. It judges no answer: it says what was
answered to whom, and whoever knows the right answers compares.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstack.transport.tls import client_context

_LIMIT_SECONDS = 60.0
_SHOWN = 200
COULD_NOT_ASK = "could not ask"


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
        return self.contexts[caller].wrap_socket(plain, server_hostname="localhost")

    def ask(self, connection: ssl.SSLSocket) -> str:
        """One request; its whole answer, as `said` puts it.

        Raises:
            OSError: There is none.
        """
        connection.sendall(self.request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += _received(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        while len(body) < size:
            body += _received(connection)
        return said(int(head.split(b" ", 2)[1]), body)


def said(status: int, body: bytes) -> str:
    """An answer in a few words: `keys SHA-256`, of the whole body; `denied RULE`; `COULD_NOT_ASK`; or what it is."""
    if status == 200:
        return f"keys {hashlib.sha256(body).hexdigest()}"
    try:
        error = json.loads(body)
        kind, rule = error["kind"], error.get("rule")
    except (ValueError, TypeError, KeyError):
        kind, rule = "", None
    if kind == "unavailable":
        return COULD_NOT_ASK
    if kind == "refused" and rule:
        return f"denied {rule}"
    return f"status {status}: {body[:_SHOWN]!r}"


def _received(connection: ssl.SSLSocket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise OSError("the connection ended")
    return data


def run(
    target: Target,
    *,
    mode: str,
    connections: int,
    seconds: float,
    count: float,
    rate: float | None,
    over: threading.Event,
) -> dict[str, Any]:
    """Ask from several threads.

    Args:
        target: Whom.
        mode: "kept": one connection for each thread; "fresh": a connection, with the next caller, for each request.
        connections: How many threads.
        seconds: For how long at most.
        count: How many requests at most.
        rate: Requests a second that are due, however long answers take; None for as fast as they come.
        over: Ends it before that.

    Returns:
        `count`, `seconds`, and milliseconds from when each request was due to its answer: `p50` and `p99`. `answers`:
        caller, what was said, how often, and when that came last (`time.monotonic`).
    """
    taken: list[float] = []
    failures: list[str] = []
    answers: Counter[tuple[int, str]] = Counter()
    last: dict[tuple[int, str], float] = {}
    lock, began = threading.Lock(), time.perf_counter()
    end = began + seconds
    turns = iter(range(1 << 40))

    def due() -> tuple[int, float] | None:
        with lock:
            turn = next(turns)
        at = began + turn / rate if rate else time.perf_counter()
        if at >= end or turn >= count or over.is_set():
            return None
        time.sleep(max(0.0, at - time.perf_counter()))
        return turn, at

    def work(number: int) -> None:
        try:
            kept = target.connect(number % len(target.contexts)) if mode == "kept" else None
            while (next_due := due()) is not None:
                turn, at = next_due
                caller = (number if kept else turn) % len(target.contexts)
                connection = kept or target.connect(caller)
                answer = caller, target.ask(connection)
                if kept is None:
                    connection.close()
                with lock:
                    taken.append(time.perf_counter() - at)
                    answers[answer] += 1
                    last[answer] = time.monotonic()
        except OSError as exc:
            failures.append(str(exc))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"load: {failures[0]}")
    return {
        "count": len(taken),
        "seconds": time.perf_counter() - began,
        **percentiles(taken),
        "answers": [[*answer, times, last[answer]] for answer, times in answers.items()],
    }


def percentiles(taken: list[float]) -> dict[str, float]:
    """Milliseconds below which half, and 99 of 100, are."""
    ordered = sorted(taken)
    at = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))
    }
    return {name: round(value * 1000, 2) for name, value in at.items()}


def main() -> None:
    """Do what standard input says, or as much of it as there is time for until SIGTERM."""
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
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
        seconds=order.get("seconds", math.inf),
        count=order.get("count", math.inf),
        rate=order.get("rate"),
        over=over,
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
