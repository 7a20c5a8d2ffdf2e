"""The operator's page before there are keys: what to allow, how, and whether it is allowed yet.

It needs nothing from elsewhere, and nothing from elsewhere may use it: a page of another site that asks this service
is refused, and so is whoever calls this service by a name that is not its own, as a page does whose name was made to
lead here (DNS rebinding).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from importlib.resources import files
from urllib.parse import urlsplit

from eth_utils.crypto import keccak
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from jinja2 import Environment, StrictUndefined

from dstack.errors import DstackError, RefusedError
from dstack.transport.server import failure
from dstack.web.urls import address_of
from dstack.wire.kms import AttestationInfoResponse
from kms.onboard_service import OnboardService
from kms.permission import PermissionWatch

_FOLDER = files("kms") / "templates"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_ASSETS = {"onboard.css": "text/css", "onboard.js": "text/javascript"}
_GRANTS = (
    ("addKmsAggregatedMr", "mr_aggregated"),
    ("addKmsDevice", "device_id"),
    ("addOsImageHash", "os_image_hash"),
)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::\d*)?", re.ASCII)
_SHOWN_HOST = 100


def add_page(app: FastAPI, service: OnboardService, watch: PermissionWatch, *, simulated: bool) -> None:
    """Add the page, its two files and `/permission`, which it polls."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_asset("onboard.html"))

    def page(request: Request) -> Response:
        shown = template.render(simulated=simulated, url=_own_url(request), **_facts(service))
        return Response(shown, media_type="text/html", headers=_HEADERS)

    def permission() -> Response:
        answer = watch.permission()
        return JSONResponse({"state": answer.state.value, "text": answer.text}, headers=_HEADERS)

    app.add_api_route("/", page, methods=["GET"], response_model=None)
    app.add_api_route("/permission", permission, methods=["GET"], response_model=None)
    for name, media_type in _ASSETS.items():
        app.add_api_route(f"/{name}", _serve(_asset(name), media_type), methods=["GET"], response_model=None)


def refuse_other_sites(app: FastAPI, names: Collection[str] = ()) -> None:
    """Refuse what a browser sends for a page of another site, apart from links; whoever else asks says no origin.

    Args:
        app: What is guarded.
        names: What this service is called, beside localhost and any address.
    """
    known = frozenset(("localhost", *map(_plain, names)))

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host")
        # A browser always says one.
        if host is not None and not _is_known(host, known):
            wanted = "want Host to be an IP address, localhost or a name in core.onboard.names"
            return failure(RefusedError(f"{wanted}, got {host[:_SHOWN_HOST]!r}"))
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        foreign = foreign or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and not _follows_link(request):
            return failure(RefusedError("want no page of another site to ask this"))
        return await go_on(request)


def _is_known(host: str, names: Collection[str]) -> bool:
    """Whether nobody but us decides where *host* leads, with or without a port: names of others are theirs to move."""
    if not (found := _HOST.fullmatch(host)):
        return False
    name = found[1] or found[2]
    return _plain(name) in names or address_of(name) is not None


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _follows_link(request: Request) -> bool:
    """Whether somebody follows a link to the page itself, which then stands alone and does nothing."""
    fetch = (request.headers.get(f"sec-fetch-{name}") for name in ("mode", "dest"))
    return (request.method, request.url.path, *fetch) == ("GET", "/", "navigate", "document")


def grant_calls(info: AttestationInfoResponse) -> tuple[tuple[str, str], ...]:
    """The calls of KmsAuth that allow this machine, each with its data in hexadecimal."""
    return tuple(
        (function, "0x" + keccak(text=f"{function}(bytes32)")[:4].hex() + getattr(info, value).hex())
        for function, value in _GRANTS
    )


def _facts(service: OnboardService) -> Mapping[str, object]:
    try:
        info = service.attestation_info()
        appraisal = service.own.appraisal()
    except DstackError as exc:
        return {"problem": str(exc)}
    return {
        "problem": None,
        "mr_aggregated": info.mr_aggregated.hex(),
        "device_id": info.device_id.hex(),
        "os_image_hash": info.os_image_hash.hex(),
        "tcb_status": appraisal.verified.tcb_status.value,
        "kms_contract": info.kms_contract_address,
        "rpc_url": info.eth_rpc_url,
        "calls": grant_calls(info),
    }


def _own_url(request: Request) -> str:
    return f"http://{request.headers.get('host', 'HOST:PORT')}"


def _serve(content: str, media_type: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=media_type, headers=_HEADERS)


def _asset(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
