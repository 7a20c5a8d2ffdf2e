"""The three rounds between two replicators, from outside: documents are carried, chunks are passed on as they come.

Whoever carries can delay and drop; every document is judged by the nodes, and what broke goes on where it ended.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult

from dstack.cli.relay import SourceBrokeError, pass_on
from dstack.errors import (
    ConfigError,
    DstackError,
    InputError,
    KeyReleaseDeniedError,
    PeerRefusedError,
    PeerUnavailableError,
)
from dstack.keys.sealing_stream import StreamShape
from dstack.transport.pacing import connect
from dstack.web.urls import split_url
from replicator.answers import MAX_ANSWER, Answer, parse_answer
from replicator.custody import Receipt, parse_receipt
from replicator.documents import MAX_INTEGER, QuotedRequest, document, parse_request
from replicator.receipts import KeptReceipt

TIMEOUT = 60.0
TRIES = 5
_PAUSE_SECONDS = 1.0
"""Twice as long after each try without progress: half a minute in all before it gives up."""
_MAX_BODY = 16 << 20
_QUOTED = 600

Progress = Callable[[int, int], None]
"""Called with the bytes of content that the new node has, and all of them."""


class _PlainConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        """As the library's, left unpaced."""
        self.sock = connect(self.host, self.port, self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@dataclass(frozen=True, slots=True)
class Node:
    """A replicator at an http or https address."""

    address: SplitResult
    name: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def at(cls, url: str, name: str) -> Node:
        """The replicator at *url*; *name* is for errors.

        Raises:
            ConfigError: It is no http or https URL of a host.
        """
        try:
            parts = split_url(url)
            plain = not parts.query and not parts.username
        except ValueError:
            plain = False
        if not plain:
            raise ConfigError(f"{name}: want http://host:port or https://host:port, got {url[:80]!r}")
        return cls(parts, name, ssl.create_default_context() if parts.scheme == "https" else None)

    @contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """A connection, closed at the end."""
        host, port = self.address.hostname or "", self.address.port
        if self.tls is None:
            connection: http.client.HTTPConnection = _PlainConnection(host, port, timeout=TIMEOUT)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=self.tls)
        with closing(connection):
            yield connection

    def path(self, path: str) -> str:
        """*path* under the address."""
        return self.address.path.rstrip("/") + path

    def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        """One short exchange.

        Raises:
            DstackError: What the node answered, or that it did not.
        """
        try:
            with self.connected() as connection:
                connection.request(method, self.path(path), body)
                response = connection.getresponse()
                content = response.read(_MAX_BODY + 1)
        except (OSError, http.client.HTTPException) as exc:
            raise PeerUnavailableError(f"{self.name}: no answer: {exc or type(exc).__name__}") from exc
        if len(content) > _MAX_BODY:
            raise PeerUnavailableError(f"{self.name}: {path}: want at most {_MAX_BODY} bytes, got more")
        if response.status != http.client.OK:
            raise self.refusal(response.status, content)
        return content

    def refusal(self, status: int, content: bytes) -> DstackError:
        """The error that the node answered with; whoever does not know the path is no replicator, whatever it says."""
        no_replicator = PeerUnavailableError(f"{self.name}: want a replicator, got status {status}")
        if status in (http.client.NOT_FOUND, http.client.METHOD_NOT_ALLOWED):
            return no_replicator
        try:
            members = document(content, what=self.name, limit=_MAX_BODY).values
            text = str(members["error"])[:_QUOTED]
            rule, block = members.get("rule"), members.get("block")
        except (InputError, KeyError):
            return no_replicator
        text = f"{self.name}: {''.join(char if char.isprintable() else '?' for char in text)}"
        if status == http.client.SERVICE_UNAVAILABLE:
            return PeerUnavailableError(text)
        if isinstance(rule, str):
            return KeyReleaseDeniedError(rule[:80], text, block if isinstance(block, int) else None)
        return PeerRefusedError(text)


class BrokenTransferError(Exception):
    """A connection broke in the middle of a transfer."""


@dataclass(slots=True)
class Session:
    """One handover.

    Attributes:
        request: What the new node asked, once it has.
        answer: What the old node answered, once it has.
        say: Told what broke and is tried again.
    """

    old: Node
    new: Node
    request: bytes = b""
    answer: Answer | None = None
    say: Callable[[str], None] = lambda _text: None

    @property
    def quoted(self) -> QuotedRequest:
        """The request, read."""
        return parse_request(self.request)

    def ask(self) -> None:
        """Round 1.

        Raises:
            DstackError: The new node refused, or did not answer.
        """
        self.request = self.new.call("POST", "/requestKey", b'{"version": 2}')

    def dry_run(self) -> dict[str, Any]:
        """Have the old node judge the request, and hand nothing over.

        Returns:
            Its answer: `block` is the number of the block at which it asked the chain.

        Raises:
            DstackError: It would refuse, and why; or it could not find out.
        """
        said = self.old.call("POST", "/onboard?dry_run=1", self.request)
        members = document(said, what="old node: dry run", limit=_MAX_BODY)
        if not members.flag("accepted"):
            raise PeerRefusedError("old node: dry run: it would not be accepted, and no reason is given")
        return {
            "block": members.integer("block", maximum=MAX_INTEGER),
            "simulated": members.flag("simulated"),
        }

    def transfer(self, progress: Progress) -> Receipt:
        """Rounds 2 and 3; goes on where a connection broke, up to `TRIES` times without progress.

        Once the old node has answered, a node that cannot answer just now is asked again like one that went away.

        Raises:
            DstackError: A node refused, or they could not be reached.
        """
        first, vain = 0, 0
        while True:
            try:
                return self._pass_on(first, progress)
            except (BrokenTransferError, PeerUnavailableError) as exc:
                if isinstance(exc, PeerUnavailableError) and self.answer is None:
                    raise
                reached = self._next_chunk(first)
                vain = 0 if reached > first else vain + 1
                first = reached
                if vain == TRIES:
                    raise PeerUnavailableError(f"gave up after {TRIES} tries without progress: {exc}") from exc
                self.say(f"{exc}; going on at chunk {first}")
                time.sleep(_PAUSE_SECONDS * 2**vain)

    def refused_old_node(self, error: DstackError) -> bool:
        """Whether *error* is what the new node says of the old one; else the old node says it of the new one."""
        return self.answer is not None and str(error).startswith(f"{self.new.name}: ")

    def evidence_of_refused(self, error: DstackError) -> bytes | None:
        """Evidence of the node that *error* is about, as far as it was seen; not verified here."""
        if self.answer is not None and self.refused_old_node(error):
            return self.answer.evidence
        return self.quoted.evidence if self.request else None

    def kept(self) -> dict[str, Any]:
        """The receipt as the new node keeps it: with the evidence that binds it, so that it can be verified.

        Raises:
            PeerUnavailableError: The old node has not answered yet.
        """
        if self.answer is None:
            raise PeerUnavailableError("old node: want an answer, got none yet")
        receipt, sealed_key = self.answer.receipt, self.answer.sealed_key
        simulated = receipt.terms.simulated_root
        return KeptReceipt("received", receipt, self.answer.evidence, simulated, self.quoted, sealed_key).members()

    def _next_chunk(self, otherwise: int) -> int:
        name = self.quoted.request.hash().hex()
        try:
            said = document(self.new.call("GET", "/status"), what="new node: status", limit=_MAX_BODY)
            pending: Any = said.values["pending"]
            return next((int(each["next_chunk"]) for each in pending if each["request"] == name), 0)
        except (PeerUnavailableError, InputError, ValueError, KeyError, TypeError, OverflowError):
            return otherwise

    def _pass_on(self, first: int, progress: Progress) -> Receipt:
        with self.old.connected() as source, self.new.connected() as target:
            try:
                source.request("POST", self.old.path(f"/onboard?from={first}"), self.request)
                response = source.getresponse()
            except (OSError, http.client.HTTPException) as exc:
                raise BrokenTransferError(f"{self.old.name}: {exc or type(exc).__name__}") from exc
            if response.status != http.client.OK:
                raise self.old.refusal(response.status, response.read(_MAX_BODY))
            self.answer, line = _line(response)
            shape = StreamShape(self.answer.receipt.terms.size)
            try:
                target.connect()
            except OSError as exc:
                raise BrokenTransferError(f"{self.new.name}: {exc}") from exc
            try:
                self._send(target, source, response, line, shape, first, progress)
            except SourceBrokeError as exc:
                raise BrokenTransferError(f"{self.old.name}: {exc}") from exc
            except OSError as exc:
                self._read_early_refusal(target, exc)
            return self._acknowledged(target)

    def _send(
        self,
        target: http.client.HTTPConnection,
        source: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        line: bytes,
        shape: StreamShape,
        first: int,
        progress: Progress,
    ) -> None:
        size = shape.sealed_size(first)
        target.putrequest("POST", self.new.path(f"/receiveKey?from={first}"))
        target.putheader("Content-Length", str(len(line) + size))
        target.putheader("Content-Type", "application/octet-stream")
        target.endheaders()
        target.send(line)
        pass_on(
            source,
            response,
            target.sock,
            size,
            timeout=TIMEOUT,
            passed=lambda sent: progress(min(shape.size, shape.size - size + sent), shape.size),
        )

    def _acknowledged(self, target: http.client.HTTPConnection) -> Receipt:
        try:
            response = target.getresponse()
            content = response.read(_MAX_BODY)
        except (OSError, http.client.HTTPException) as exc:
            raise BrokenTransferError(f"{self.new.name}: {exc or type(exc).__name__}") from exc
        if response.status != http.client.OK:
            raise self.new.refusal(response.status, content)
        return parse_receipt(content)

    def _read_early_refusal(self, target: http.client.HTTPConnection, broke: OSError) -> None:
        """A node that refuses answers before it has read everything; what it said is on the broken connection."""
        try:
            response = target.getresponse()
            content = response.read(_MAX_BODY)
        except (OSError, http.client.HTTPException):
            raise BrokenTransferError(f"{self.new.name}: {broke}") from broke
        raise self.new.refusal(response.status, content)


def _line(response: http.client.HTTPResponse) -> tuple[Answer, bytes]:
    line = response.readline(MAX_ANSWER + 2)
    if not line.endswith(b"\n"):
        raise BrokenTransferError("old node: the answer ended early")
    return parse_answer(line[:-1]), line
