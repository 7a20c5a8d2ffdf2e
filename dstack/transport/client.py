"""A client of prpc services over HTTPS, HTTP or a unix socket."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from dstack.errors import DstackError, InputError, KeyReleaseDeniedError, PeerRefusedError, PeerUnavailableError
from dstack.web.client import bounded_body, bounded_client
from dstack.wire.fields import string, uint64
from dstack.wire.message import from_json, from_protobuf, to_json, to_protobuf
from dstack.wire.prpc import read_error_protobuf

ANSWER_LIMIT = 10 << 20
TOTAL_SECONDS = 60.0

_QUOTED = 500

Message = TypeVar("Message")


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error's JSON body; all but the text is this project's addition."""

    error: str = string(1)
    kind: str = string(2)
    rule: str = string(3)
    block: int | None = uint64(4, optional=True)


class PrpcClient:
    """Calls the methods of one service.

    Args:
        base_url: Where the methods are mounted, such as `https://kms.example/prpc`.
        tls: The context for HTTPS; without one, the system's authorities.
        unix_socket: Connect to this socket; the host in *base_url* is then only a name.
        accept_peer: Judges the server's certificate (DER) on the very connection that carried an answer, before the
            answer is read; it raises to refuse. Only for HTTPS.
        timeout: Seconds that a call may take, all in all.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tls: ssl.SSLContext | None = None,
        unix_socket: Path | None = None,
        accept_peer: Callable[[bytes], None] | None = None,
        timeout: float = TOTAL_SECONDS,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._accept_peer = accept_peer
        self._http = bounded_client(seconds=timeout, tls=tls, unix_socket=unix_socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, request: Any, answer: type[Message], *, as_json: bool = True) -> Message:
        """Call *method* with *request* (None: it takes no argument) and read its answer as *answer*.

        Raises:
            PeerUnavailableError: Nobody answered, what answered is not such a service, or it could not find out.
            KeyReleaseDeniedError: The service refused and named the rule.
            PeerRefusedError: The service answered with another error.
        """
        body = self._post(method, request, as_json)
        try:
            return from_json(answer, body) if as_json else from_protobuf(answer, body)
        except InputError as exc:
            raise PeerUnavailableError(f"{self._base_url}: {method}: want {answer.__name__}, got {exc}") from exc

    def call_empty(self, method: str, request: Any) -> None:
        """Call *method*, whose answer is empty.

        Raises:
            PeerUnavailableError: As `call`.
            KeyReleaseDeniedError: As `call`.
            PeerRefusedError: As `call`.
        """
        self._post(method, request, True)

    def _post(self, method: str, request: Any, as_json: bool) -> bytes:
        url = f"{self._base_url}/{method}" + ("?json" if as_json else "")
        try:
            with self._http.stream("POST", url, content=_encode(request, as_json)) as response:
                self._judge_peer(response)
                body = bounded_body(response, ANSWER_LIMIT)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise PeerUnavailableError(f"{self._base_url}: {method}: no answer: {exc or type(exc).__name__}") from exc
        if response.status_code != httpx.codes.OK:
            raise _told(body, as_json, otherwise=f"{method}: status {response.status_code}")
        return body

    def _judge_peer(self, response: httpx.Response) -> None:
        if self._accept_peer is None:
            return
        tls = response.extensions["network_stream"].get_extra_info("ssl_object")
        certificate = tls.getpeercert(True) if tls else None
        if not certificate:
            raise PeerRefusedError(f"{self._base_url}: want a server certificate, got none")
        self._accept_peer(certificate)


def _encode(request: Any, as_json: bool) -> bytes:
    if request is None:
        return b"null" if as_json else b""
    return to_json(request).encode() if as_json else to_protobuf(request)


def _told(body: bytes, as_json: bool, *, otherwise: str) -> DstackError:
    """The error that a service told us of."""
    try:
        failure = from_json(_Failure, body) if as_json else _Failure(read_error_protobuf(body))
    except InputError:
        failure = _Failure()
    text = failure.error[:_QUOTED] or otherwise
    if failure.kind == "unavailable":
        return PeerUnavailableError(text)
    if failure.rule and failure.kind == "refused":
        return KeyReleaseDeniedError(failure.rule[:_QUOTED], text, failure.block)
    return PeerRefusedError(text)
