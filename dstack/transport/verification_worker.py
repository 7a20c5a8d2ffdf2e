"""One process that verifies quotes, and this side of its pipe.

What comes back says of the quote what is not in it: whoever asked has its bytes, and reads them as the worker did.
"""

from __future__ import annotations

import pickle
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from typing import Any

from dstack.attestation.collateral import Collateral
from dstack.attestation.content_cache import ContentCache
from dstack.attestation.quote import parse_quote
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import VerifiedQuote, verify_quote

END_SECONDS = 5.0
_HEAD = 4
_PIECE = 1 << 16
_KNOWN_COLLATERAL = 8
# Not forked: whoever starts a worker may have threads, and secrets that a worker has no use for.
_SPAWN = get_context("spawn")
# The quote comes first; the rest is what a worker says.
_SAID = tuple(field.name for field in fields(VerifiedQuote))[1:]

_Order = tuple[int, bytes, datetime, int, Collateral | None]


class VerificationWorker:
    """Verifies one quote after the other in a process of its own. For one thread at a time.

    Args:
        roots: The only certificates allowed to end a chain.
        policy: What is accepted among genuine quotes.
        cache_capacity: Most contents that it remembers.
    """

    def __init__(self, roots: TrustedRoots, policy: VerificationPolicy, cache_capacity: int) -> None:
        self._pipe, theirs = socket.socketpair()
        with theirs:
            self._process = _SPAWN.Process(
                target=_work, args=(theirs, roots, policy, cache_capacity), name="verification", daemon=True
            )
            self._process.start()
        self._known: list[Collateral | None] = [None] * _KNOWN_COLLATERAL
        self._next = 0
        self._turn = 0

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid or 0

    def ask(self, raw: bytes, collateral: Collateral, *, at: datetime, deadline: float) -> Callable[[], VerifiedQuote]:
        """Have the process verify a quote.

        Returns:
            What gives the answer: it returns and raises as `verify_quote`.

        Raises:
            TimeoutError: No answer before *deadline* (`time.monotonic`).
            OSError: The process has ended, or answers something else. After any error nothing but `end` is left: an
                answer that comes late must not be taken for that to the next question.
        """
        self._turn += 1
        order: _Order = (self._turn, raw, at, *self._named(collateral))
        _send(self._pipe, pickle.dumps(order, pickle.HIGHEST_PROTOCOL), deadline)
        turn, said = pickle.loads(_receive(self._pipe, deadline))  # noqa: S301 - our own process wrote it
        if turn != self._turn:
            raise OSError(f"verification: want the answer to order {self._turn}, got that to {turn}")
        return partial(_answer, raw, said)

    def kill(self) -> None:
        """End the process from another thread: whoever asks is told that it has ended."""
        self._process.kill()

    def end(self, *, patience: float = END_SECONDS) -> None:
        """End the process: its pipe first, then by force."""
        self._pipe.close()
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _named(self, collateral: Collateral) -> tuple[int, Collateral | None]:
        """Its number, and itself where the process does not have it: the same comes with most quotes."""
        for number, known in enumerate(self._known):
            if known is collateral:
                return number, None
        number, self._next = self._next, (self._next + 1) % _KNOWN_COLLATERAL
        self._known[number] = collateral
        return number, collateral


def _work(pipe: socket.socket, roots: TrustedRoots, policy: VerificationPolicy, cache_capacity: int) -> None:
    """Answer until the other side of *pipe* is closed, by whoever holds it or by its end."""
    # Whoever started it ends it, so it does not listen to the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cache = ContentCache(cache_capacity)
    known: dict[int, Collateral] = {}
    while True:
        try:
            turn, raw, at, number, collateral = pickle.loads(_receive(pipe))  # noqa: S301 - our own process wrote it
        except ConnectionError:
            return
        if collateral is not None:
            known[number] = collateral
        said: object
        try:
            verified = verify_quote(raw, known[number], roots=roots, at=at, policy=policy, cache=cache)
            said = tuple(getattr(verified, name) for name in _SAID)
        except Exception as exc:  # noqa: BLE001 - it is passed on to whoever asked
            said = exc
        _send(pipe, pickle.dumps((turn, said), pickle.HIGHEST_PROTOCOL))


def _answer(raw: bytes, said: Any) -> VerifiedQuote:
    if isinstance(said, Exception):
        raise said
    return VerifiedQuote(parse_quote(raw), *said)


def _send(pipe: socket.socket, content: bytes, deadline: float | None = None) -> None:
    pipe.settimeout(_remaining(deadline))
    pipe.sendall(len(content).to_bytes(_HEAD, "big") + content)


def _receive(pipe: socket.socket, deadline: float | None = None) -> bytes:
    """What the other side sent; it sends one thing, and then waits."""
    content, wanted = b"", _HEAD
    while len(content) < wanted:
        pipe.settimeout(_remaining(deadline))
        piece = pipe.recv(_PIECE)
        if not piece:
            raise ConnectionResetError("the other side of the pipe is closed")
        content += piece
        if len(content) >= _HEAD:
            wanted = _HEAD + int.from_bytes(content[:_HEAD], "big")
    return content[_HEAD:]


def _remaining(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
