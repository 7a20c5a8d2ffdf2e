"""What callers reach: the KMS service over RA-TLS, and before there are keys the onboarding service over plain HTTP."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from dstack.errors import DstackError
from dstack.transport.server import failure, prpc_app
from kms.metrics import CONTENT_TYPE, Metrics
from kms.onboard_page import add_page, refuse_other_sites
from kms.onboard_service import OnboardService
from kms.permission import PermissionWatch
from kms.rate import RateLimit, RateLimited
from kms.service import KmsService

VERSION = "0.1.0"
APP_VERSION = f"v{VERSION} (dstack-python)"

# Whoever only watches may ask for the head alone, as upstream's framework answers it wherever there is GET.
_LOOKS = ["GET", "HEAD"]


def kms_app(
    service: KmsService,
    metrics: Metrics | None = None,
    *,
    show_metrics: bool = True,
    limit: RateLimit | None = None,
    is_ready: Callable[[], bool] = lambda: True,
) -> FastAPI:
    """The application of the TLS listener.

    Args:
        service: Its methods.
        metrics: What counts its calls; a new one if there is none.
        show_metrics: Whether `GET /metrics` tells them to anybody.
        limit: How often its methods may be called; None for as often as anybody likes.
        is_ready: Whether the chain was asked since the start; `GET /health` tells.
    """
    counted = metrics or Metrics()
    app = _with_health(
        prpc_app(service.methods(), prefix="KMS.", headers={"X-App-Version": APP_VERSION}, observe=counted.observe),
        is_ready,
    )
    if limit is not None:
        app.add_middleware(RateLimited, limit=limit)
    if show_metrics:

        def told() -> Response:
            return Response(counted.recent_text(), media_type=CONTENT_TYPE)

        app.add_api_route("/metrics", told, methods=_LOOKS, response_model=None)
    return app


def onboard_app(
    service: OnboardService,
    watch: PermissionWatch,
    *,
    simulated: bool = False,
    is_ready: Callable[[], bool] = lambda: True,
) -> FastAPI:
    """The application of the plain listener.

    Args:
        service: Its methods.
        watch: Asks the chain for the operator's page.
        simulated: Whether a root of trust is configured that is not Intel's; the page says so.
        is_ready: As of `kms_app`.
    """
    app = _with_health(prpc_app(service.methods(), prefix="Onboard.", observe=Metrics().observe), is_ready)
    settings = service.settings.core.onboard
    refuse_other_sites(app, (settings.address, *settings.names))
    add_page(app, service, watch, simulated=simulated)

    def finish() -> Response:
        try:
            service.onboarding.require_keys()
        except DstackError as exc:
            return failure(exc)
        service.finish()
        return PlainTextResponse("OK")

    app.add_api_route("/finish", finish, methods=["GET"], response_model=None)
    return app


def _with_health(app: FastAPI, is_ready: Callable[[], bool]) -> FastAPI:
    def health() -> Response:
        return PlainTextResponse("OK") if is_ready() else PlainTextResponse("waiting for the chain", status_code=503)

    app.add_api_route("/health", health, methods=_LOOKS, response_model=None)
    return app
