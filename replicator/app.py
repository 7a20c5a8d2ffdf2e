"""The HTTP surface of the replicator: read a body, ask the node, answer. No rule lives here.

Paths are those of the original replicator; bodies are the JSON documents of `documents`. Errors are
`{"error", "kind"}`, and `"rule"` where the chain decided.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from dstack.errors import (
    DstackError,
    HandoverRefusedError,
    InputError,
    KeyReleaseDeniedError,
    MessageMalformedError,
    RefusedError,
    UnavailableError,
)
from dstack.measurement.strict_json import Members, parse_json
from dstack.transport.server import read_body
from replicator.config import parse_configure
from replicator.documents import VERSION, serialise_receipt
from replicator.node import Replicator

MAX_TAG = 256

# The first class that fits decides.
_STATUS_CODES: tuple[tuple[type[DstackError], int], ...] = (
    (InputError, 400),
    (KeyReleaseDeniedError, 403),
    (RefusedError, 409),
    (UnavailableError, 503),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Route:
    """One path and what answers it; `local_only` leaves out callers from the network."""

    method: str
    path: str
    answer: Callable[[bytes], str]
    local_only: bool = False


def replicator_app(node: Replicator) -> FastAPI:
    """The application of *node*."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for route in (
        _Route("GET", "/status", lambda _: json.dumps({"version": VERSION, **asdict(node.status())})),
        _Route("POST", "/configure", lambda raw: _configure(node, raw)),
        _Route("POST", "/requestKey", lambda _: node.request_key()),
        _Route("POST", "/onboard", node.onboard),
        _Route("POST", "/receiveKey", lambda raw: serialise_receipt(node.receive_key(raw))),
        _Route("POST", "/getkey", lambda raw: json.dumps({"key": node.derive_key(_tag(raw)).hex()}), local_only=True),
    ):
        app.add_api_route(route.path, _endpoint(route), methods=[route.method], response_model=None)
    return app


def _endpoint(route: _Route) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            if route.local_only:
                _require_local(request)
            raw = await read_body(request)
            return _json(200, await run_in_threadpool(route.answer, raw))
        except DstackError as exc:
            _log.info("%s: %s", route.path, exc)
            return _failure(exc)

    return endpoint


def _configure(node: Replicator, raw: bytes) -> str:
    node.configure(parse_configure(raw))
    return json.dumps({"status": "success"})


def _tag(raw: bytes) -> str:
    value = parse_json(raw, what="getkey", limit=8 * MAX_TAG, error=MessageMalformedError)
    members = Members.of(value, what="getkey", error=MessageMalformedError)
    members.refuse_others(frozenset({"tag"}))
    tag = members.text("tag")
    if not 0 < len(tag) <= MAX_TAG:
        raise MessageMalformedError(f"getkey: tag: want 1 to {MAX_TAG} characters, got {len(tag)}")
    return tag


def _require_local(request: Request) -> None:
    """Let pass who is on this machine: a loopback address, or a unix socket, which has no address."""
    client = request.client
    if client is None or not client.host or ipaddress.ip_address(client.host).is_loopback:
        return
    raise HandoverRefusedError("getkey: want a caller on this machine, got one from the network")


def _failure(error: DstackError) -> Response:
    code = next(code for kind, code in _STATUS_CODES if isinstance(error, kind))
    body: dict[str, str | int | None] = {"error": str(error), "kind": type(error).__name__}
    if isinstance(error, KeyReleaseDeniedError):
        body |= {"rule": error.rule, "block": error.block}
    return _json(code, json.dumps(body))


def _json(code: int, text: str) -> Response:
    return Response(text, status_code=code, media_type="application/json")
