"""prpc over HTTP: a table of methods becomes an application (kms.md section 1).

Methods are plain functions and run in a pool of threads. Every `DstackError` of theirs is answered with status 400, as
clients expect; anything else is a defect of ours, logged by uvicorn and answered with 500 and no details.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from threading import BoundedSemaphore
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dstack.errors import (
    DstackError,
    InputError,
    KeyReleaseDeniedError,
    MessageMalformedError,
    QuoteUntrustedError,
    RefusedError,
    ServiceBusyError,
)
from dstack.transport.bodies import BODY_LEASE
from dstack.transport.listener import PEER_CERTIFICATE
from dstack.wire.message import from_json, from_protobuf, from_query, to_json, to_protobuf
from dstack.wire.prpc import error_json, error_protobuf, trim_method, wants_json

BODY_LIMIT = 10 << 20
BODY_SECONDS = 30.0
CALLS_AT_ONCE = 40
CALLS_UNDER_WAY = 256
"""At work or waiting: as many as connections may ask for. A call goes on when whoever made it is gone."""

_METHODS = ("GET", "POST")
_JSON = "application/json"
_OCTETS = "application/octet-stream"

_RawHeaders = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class CallContext:
    """What is known of a call besides its message: the client's certificate as presented, and a name for the logs."""

    peer_certificate_der: bytes | None
    request_id: str


@dataclass(frozen=True, slots=True)
class Observation:
    """How one call ended, for logs and counters; nothing of what was said.

    Attributes:
        method: Its bare name; `UNKNOWN` for whatever is not in the table.
        status: Of HTTP; 500 is a defect of ours.
        seconds: From the end of its head to its answer.
        request_id: The name that the answer's header `X-Request-Id` gave it.
    """

    method: str
    status: int
    seconds: float
    request_id: str


UNKNOWN = "unknown"
Observer = Callable[[Observation], None]


@dataclass(frozen=True, slots=True)
class Method:
    """One method: the class of its argument (None: it takes none) and the function that answers.

    The function returns a message, or None for an empty answer.
    """

    request: type[Any] | None
    call: Callable[[Any, CallContext], Any]


@dataclass(frozen=True, slots=True)
class _Call:
    """One request, completely read."""

    name: str
    query: str | None
    body: bytes
    as_json: bool
    context: CallContext


def prpc_app(
    service: Mapping[str, Method],
    *,
    prefix: str,
    path: str = "/prpc",
    headers: Mapping[str, str] | None = None,
    observe: Observer | None = None,
) -> FastAPI:
    """An application that answers `<path>/<Method>` and `<path>/<prefix><Method>`.

    Args:
        service: Methods by their bare names.
        prefix: What is trimmed from the left of a name, such as `KMS.`, as often as it occurs.
        path: Where the methods are mounted; empty for the root.
        headers: Sent with every answer, also with those of paths beside the methods.
        observe: Told of every call after it was answered; must not block.
    """
    endpoint = _Endpoint(service, prefix, observe)
    app = _PrpcApp(endpoint, path + "/", tuple(_raw(headers or {})))
    route = Route(path + "/{method}", endpoint, methods=list(_METHODS))
    # Starlette adds HEAD where there is GET; a method is no document.
    route.methods = set(_METHODS)
    app.router.routes.append(route)
    return app


class BareApp(FastAPI):
    """An application of nothing but its routes: no pages of the framework's, no redirects by a name the caller chose.

    Args:
        kind: The `kind` of the error that tells of a path or a verb that there is not; in our form, as every error is.
    """

    def __init__(self, *, kind: str = "input") -> None:
        super().__init__(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        self.add_exception_handler(HTTPException, partial(_no_route, kind))


async def _no_route(kind: str, request: Request, error: HTTPException) -> Response:
    text = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        text = f"path: want one that is served here, got {request.scope['path'][:100]!r}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        text = f"method: want {(error.headers or {}).get('Allow', 'another')}, got {request.method[:20]!r}"
    return Response(error_json(text, kind=kind), error.status_code, error.headers, _JSON)


class _PrpcApp(BareApp):
    """Calls of methods go past FastAPI's own layers and routing, which cost more than most methods do.

    What was added to the application as a middleware is before them all the same. Everything else (paths beside the
    methods, other verbs) goes FastAPI's way.
    """

    def __init__(self, endpoint: ASGIApp, methods_at: str, headers: _RawHeaders) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._methods_at = methods_at
        self._headers = headers

    def build_middleware_stack(self) -> ASGIApp:
        others, calls, methods_at = super().build_middleware_stack(), self._endpoint, self._methods_at
        for layer, args, kwargs in reversed(self.user_middleware):
            calls = layer(calls, *args, **kwargs)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            is_call = scope["type"] == "http" and scope["method"] in _METHODS and scope["path"].startswith(methods_at)
            name = scope["path"][len(methods_at) :] if is_call else ""
            await (calls if name and "/" not in name else others)(scope, receive, _with_headers(send, self._headers))

        return app


def _with_headers(send: Send, headers: _RawHeaders) -> Send:
    """What sends the same answers with *headers* besides their own."""
    if not headers:
        return send

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return sending


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Answers calls as ASGI has them: nothing of them is for FastAPI to parse, and its parsing takes its time."""

    service: Mapping[str, Method]
    prefix: str
    observe: Observer | None
    threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="call")
    )
    places: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(CALLS_UNDER_WAY))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        name, request_id = trim_method(scope["path"].rpartition("/")[2], self.prefix), secrets.token_hex(8)
        began, status = time.monotonic(), 500
        try:
            response = await self._answer(name, request, request_id)
            status = response.status_code
        finally:
            if self.observe is not None:
                shown = name if name in self.service else UNKNOWN
                self.observe(Observation(shown, status, time.monotonic() - began, request_id))
        response.raw_headers.append((b"x-request-id", request_id.encode()))
        await response(scope, receive, send)

    async def _answer(self, name: str, request: Request, request_id: str) -> Response:
        query = request.scope["query_string"].decode("utf-8", "replace")
        as_json = wants_json(request.method, query, request.headers.get("content-type"))
        try:
            call = _Call(
                name=name,
                query=query if request.method == "GET" else None,
                body=await read_body(request),
                as_json=as_json,
                context=CallContext(getattr(request.state, PEER_CERTIFICATE, None), request_id),
            )
            return await self._call(call)
        except DstackError as exc:
            return failure(exc, as_json=as_json)

    async def _call(self, call: _Call) -> Response:
        if not self.places.acquire(blocking=False):
            raise ServiceBusyError(f"calls: want at most {CALLS_UNDER_WAY} at once, got more")
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, _dispatch, self.service, call)
        finally:
            self.places.release()


def _raw(headers: Mapping[str, str]) -> Iterable[tuple[bytes, bytes]]:
    """As ASGI has them."""
    return ((name.lower().encode(), value.encode()) for name, value in headers.items())


def failure(error: DstackError, *, as_json: bool = True) -> Response:
    """The answer to an error: status 400 (503: busy), and in JSON also which kind of error and which rule decided."""
    status, headers = (503, {"Retry-After": "1"}) if isinstance(error, ServiceBusyError) else (400, None)
    if not as_json:
        return Response(error_protobuf(str(error)), status, headers, _OCTETS)
    return Response(error_json(str(error), **_details(error)), status, headers, _JSON)


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        MessageMalformedError: It is larger than `BODY_LIMIT`, did not come within `BODY_SECONDS`, or broke off.
        ServiceBusyError: Bodies take too much memory just now.
    """
    body, lease = bytearray(), request.scope["state"][BODY_LEASE]
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise MessageMalformedError(f"body: want at most {BODY_LIMIT} bytes: payload too large")
                lease.hold(len(body))
    except TimeoutError as exc:
        raise MessageMalformedError(f"body: want it within {BODY_SECONDS:.0f} s, got a part") from exc
    except ClientDisconnect as exc:
        raise MessageMalformedError("body: want all of it, got a part and the end of the connection") from exc
    return bytes(body)


def _dispatch(service: Mapping[str, Method], call: _Call) -> Response:
    method = service.get(call.name)
    if method is None:
        raise MessageMalformedError(f"Service not found: {call.name[:100]}")
    answer = method.call(_parse(method.request, call), call.context)
    if call.as_json:
        return Response("null" if answer is None else to_json(answer), media_type=_JSON)
    return Response(b"" if answer is None else to_protobuf(answer), media_type=_OCTETS)


def _parse(request: type[Any] | None, call: _Call) -> Any:
    if request is None:
        return None
    if call.query is not None:
        return from_query(request, call.query)
    if not call.as_json:
        return from_protobuf(request, call.body)
    return from_json(request, call.body) if call.body else request()


def _details(error: DstackError) -> dict[str, str | int]:
    if isinstance(error, KeyReleaseDeniedError):
        block = {} if error.block is None else {"block": error.block}
        return {"kind": "refused", "rule": error.rule, **block}
    if isinstance(error, QuoteUntrustedError):
        return {"kind": "refused", "step": error.step}
    if isinstance(error, RefusedError):
        return {"kind": "refused"}
    return {"kind": "input" if isinstance(error, InputError) else "unavailable"}
