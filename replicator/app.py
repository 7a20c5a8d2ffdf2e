"""The HTTP surface of the replicator: read, ask the node, answer. No rule lives here.

Paths are those of the original replicator; bodies are the documents of version 2, or, where the settings take them, the
forms of the original around these (`old_forms`). Errors are `{"error", "kind"}`, and `"rule"` where the chain decided.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from dstack.chain.client import printable
from dstack.errors import (
    DstackError,
    HandoverRefusedError,
    InputError,
    KeyReleaseDeniedError,
    MessageMalformedError,
    RefusedError,
    UnavailableError,
)
from dstack.keys.sealing import TAG_SIZE
from dstack.keys.sealing_stream import CHUNK
from dstack.transport.bodies import BODY_LEASE
from dstack.transport.direct_body import Fill, Parts
from dstack.transport.listener import BODY_RECEIVER, BODY_SENDER
from dstack.transport.server import BareApp, read_body
from replicator import old_forms
from replicator.configure import parse_configure
from replicator.containers import Container, container_of_bearer, parse_tag
from replicator.documents import compact, document, serialise_request
from replicator.node import Replicator
from replicator.page import render_page
from replicator.receiving import Delivery
from replicator.refusals import LONGEST_REASON
from replicator.uploads import Upload
from replicator.write_behind import MEMORY, WriteBehind

# The first class that fits decides.
_STATUS_CODES: tuple[tuple[type[DstackError], int], ...] = (
    (InputError, 400),
    (KeyReleaseDeniedError, 403),
    (RefusedError, 409),
    (UnavailableError, 503),
)
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MAX_NUMBER = 10**9
_PIECE = 64 << 10
_SENDING = 3 * (CHUNK + TAG_SIZE)
_RECEIVING = MEMORY + CHUNK + TAG_SIZE
"""Bytes of a stream that are there at once, on either side."""
_log = logging.getLogger(__name__)

Answer = Callable[[Request, bytes], Response]


@dataclass(frozen=True, slots=True)
class _Route:
    """One path and what answers it."""

    method: str
    path: str
    answer: Answer


def replicator_app(node: Replicator) -> FastAPI:
    """The application of *node*."""
    app = BareApp(kind=InputError.__name__)
    for route in (
        _Route("GET", "/", lambda *_: _page(node)),
        _Route("GET", "/status", lambda request, _: _json(200, json.dumps(_status(node, request)))),
        _Route("GET", "/status/", lambda request, _: _json(200, json.dumps(_status(node, request)))),
        _Route("POST", "/configure", lambda _, raw: _configure(node, raw)),
        _Route("POST", "/requestKey", lambda _, raw: _request_key(node, raw)),
        _Route("POST", "/onboard", lambda request, raw: _onboard(node, request, raw)),
        _Route("POST", "/receipts", lambda request, raw: _receipts(node, request, raw)),
        _Route("POST", "/getkey", lambda request, raw: _get_key(node, request, raw)),
    ):
        app.add_api_route(route.path, _endpoint(node, route), methods=[route.method], response_model=None)
    app.add_api_route("/receiveKey", _receive_endpoint(node), methods=["POST"], response_model=None)
    return app


def container_app(node: Replicator, container: Container) -> FastAPI:
    """What one container reaches at its own socket: `/getkey`, and nothing else."""
    app = BareApp(kind=InputError.__name__)
    route = _Route("POST", "/getkey", lambda _, raw: _key(node, container, raw))
    app.add_api_route(route.path, _endpoint(node, route), methods=[route.method], response_model=None)
    return app


def _endpoint(node: Replicator, route: _Route) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            raw = await read_body(request)
            return await run_in_threadpool(route.answer, request, raw)
        except DstackError as exc:
            return _refused(node, route.path, exc)

    return endpoint


def _receive_endpoint(node: Replicator) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await _receive(node, request)
        except DstackError as exc:
            return _refused(node, "/receiveKey", exc)
        except ClientDisconnect:
            _log.info("/receiveKey: the connection broke; the next one may go on")
            return Response(status_code=400)

    return endpoint


async def _receive(node: Replicator, request: Request) -> Response:
    """Round 3: the answer's line, then chunks from number `from` on, each opened and written as it comes."""
    first = _number(request, "from")
    state = request.scope["state"]
    upload = Upload(
        request.stream(), old_forms=node.old_forms, receiver=state.get(BODY_RECEIVER), hold=state[BODY_LEASE].hold
    )
    line = await upload.line()
    delivery = await run_in_threadpool(node.receive, line)
    try:
        if first > delivery.next_chunk:
            raise HandoverRefusedError(f"stream: want it from chunk {delivery.next_chunk} on, got it from {first} on")
        upload.hold(len(line) + min(delivery.shape.sealed_size(delivery.next_chunk), _RECEIVING))
        await _pass_over(upload, delivery, first)
        await _feed(upload, delivery)
        if delivery.is_complete:
            await upload.require_end()
        receipt = await run_in_threadpool(node.finish, delivery)
    finally:
        delivery.close()
    if upload.is_old_form:
        return Response(old_forms.LOADED, media_type="text/plain")
    return _json(200, compact(receipt.members()))


async def _pass_over(upload: Upload, delivery: Delivery, first: int) -> None:
    """Leave out the chunks that came before."""
    buffer = memoryview(bytearray(CHUNK + TAG_SIZE))
    for number in range(first, min(delivery.next_chunk, delivery.shape.chunks)):
        await upload.fill(buffer[: delivery.shape.sealed_length(number)])


async def _feed(upload: Upload, delivery: Delivery) -> None:
    """Have chunks opened and written as they come; what came whole is kept."""
    if await upload.aside(partial(_add_all, delivery)):
        if not delivery.is_complete:
            # Where the connection broke, rather than the body ended, this says so.
            await upload.require_end()
        return
    buffer = memoryview(bytearray(CHUNK + TAG_SIZE))
    while not delivery.is_complete and await upload.fill(sealed := buffer[: _next_length(delivery)]):
        await run_in_threadpool(delivery.add, sealed)


def _next_length(delivery: Delivery) -> int:
    return delivery.shape.sealed_length(delivery.next_chunk)


def _add_all(delivery: Delivery, fill: Fill) -> None:
    """Open each chunk as it comes, and write some at once while the next ones come."""
    buffer = memoryview(bytearray(CHUNK + TAG_SIZE))
    with WriteBehind(delivery.write, delivery.written, offset=delivery.next_chunk * CHUNK) as behind:
        for number in range(delivery.next_chunk, delivery.shape.chunks):
            sealed = buffer[: delivery.shape.sealed_length(number)]
            if not fill(sealed):
                break
            content = behind.place(delivery.shape.length(number))
            delivery.open_into(number, sealed, content)
            behind.add(len(content))


class _Parts(StreamingResponse):
    """An answer whose parts, *size* bytes together, are made while they are sent."""

    def __init__(self, parts: Parts, size: int) -> None:
        # Past the server's thread a part may wait longer than its memory is good for.
        super().__init__(
            map(bytes, parts), media_type="application/octet-stream", headers={"Content-Length": str(size)}
        )
        self._parts = parts
        self._size = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Past the event loop where that is to be had; a part that cannot be made ends the connection."""
        sender = scope.get("state", {}).get(BODY_SENDER)
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        try:
            if sender is None or not await sender(self._size, self._parts, begin=partial(send, start)):
                await super().__call__(scope, receive, send)
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except DstackError:
            return  # Whoever makes the parts has noted it.
        finally:
            self._parts.close()


def _page(node: Replicator) -> Response:
    return Response(render_page(node.status()), media_type="text/html", headers=_PAGE_HEADERS)


def _status(node: Replicator, request: Request) -> dict[str, Any]:
    status = node.status()
    if node.old_forms:
        status |= {"caller_address": request.client.host if request.client else "", **node.old_status()}
    return status


def _configure(node: Replicator, raw: bytes) -> Response:
    urls = parse_configure(raw, old_forms=node.old_forms)
    node.configure(urls)
    return _json(200, json.dumps({"status": "success", "config": {"endpoints": len(urls)}}))


def _request_key(node: Replicator, raw: bytes) -> Response:
    """An empty body asks in the old form where that is taken; `{"version": 2}` never does."""
    if raw.strip():
        members = document(raw, what="requestKey", limit=4096)
        members.refuse_others(frozenset({"version"}))
        if members.integer("version", 2, maximum=_MAX_NUMBER) != 2:
            raise MessageMalformedError("requestKey: version: want 2")
    quoted = node.request_key()
    if node.old_forms and not raw.strip():
        return _json(200, json.dumps(old_forms.old_request(quoted)))
    return _json(200, serialise_request(quoted))


def _onboard(node: Replicator, request: Request, raw: bytes) -> Response:
    is_old = old_forms.is_old_form(raw)
    if is_old:
        _require_old_forms(node, "onboard")
        raw = old_forms.request_in_form(raw)
    if request.query_params.get("dry_run") is not None:
        judged = node.judge(raw)
        return _json(200, json.dumps({"accepted": True, "block": judged.block.number, "simulated": judged.simulated}))
    first = _number(request, "from")
    sending = node.onboard(raw)
    if first > sending.shape.chunks:
        raise MessageMalformedError(f"onboard: from: want 0 to {sending.shape.chunks}, got {first}")
    if is_old and sending.shape.size > old_forms.MAX_CONTENT:
        raise HandoverRefusedError(
            f"onboard: want a secure file of at most {old_forms.MAX_CONTENT} bytes for the old form, "
            f"got {sending.shape.size}"
        )

    request.scope["state"][BODY_LEASE].hold(len(raw) + min(sending.shape.sealed_size(first), _SENDING))

    def parts() -> Parts:
        try:
            yield sending.line.encode() + b"\n"
            yield from sending.chunks(first)
        except DstackError as exc:
            # The answer has begun: its end shows that something is wrong, and /status what.
            _note(node, "/onboard", exc)
            raise

    if is_old:
        return Response(b"".join(old_forms.sealed_text(parts())), media_type="text/plain")
    size = len(sending.line.encode()) + 1 + sending.shape.sealed_size(first)
    return _Parts(parts(), size)


def _receipts(node: Replicator, request: Request, raw: bytes) -> Response:
    since, with_evidence = 0, False
    if raw.strip():
        members = document(raw, what="receipts", limit=4096)
        members.refuse_others(frozenset({"since", "evidence"}))
        since = members.integer("since", 0, maximum=_MAX_NUMBER)
        with_evidence = members.flag("evidence", False)
    text = json.dumps(node.around.receipts.page(since, with_evidence=with_evidence)).encode()
    request.scope["state"][BODY_LEASE].hold(len(raw) + len(text))
    # In pieces: what is given away whole is no longer counted while its reader takes its time.
    pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
    return StreamingResponse(pieces, media_type="application/json", headers={"Content-Length": str(len(text))})


def _get_key(node: Replicator, request: Request, raw: bytes) -> Response:
    return _key(node, container_of_bearer(node.containers, request.headers.get("authorization")), raw)


def _key(node: Replicator, container: Container, raw: bytes) -> Response:
    tag = parse_tag(raw)
    return Response(
        json.dumps({"key": node.derive_key(container, tag).hex()}),
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _require_old_forms(node: Replicator, what: str) -> None:
    if not node.old_forms:
        raise HandoverRefusedError(f"{what}: want a document of version 2, got an old form; protocol.old_forms is off")


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise MessageMalformedError(f"{name}: want a number, got {text[:20]!r}")
    return int(text)


def _note(node: Replicator, path: str, error: DstackError) -> None:
    _log.info("%s: %s", path, printable(str(error), LONGEST_REASON))
    node.refusals.note(path, error, node.moments.now())


def _refused(node: Replicator, path: str, error: DstackError) -> Response:
    _note(node, path, error)
    code = next(code for kind, code in _STATUS_CODES if isinstance(error, kind))
    body: dict[str, str | int | None] = {"error": str(error), "kind": type(error).__name__}
    if isinstance(error, KeyReleaseDeniedError):
        body |= {"rule": error.rule, "block": error.block}
    return _json(code, json.dumps(body))


def _json(code: int, text: str) -> Response:
    return Response(text, status_code=code, media_type="application/json")
