"""What callers reach: the KMS service over RA-TLS, and before there are keys the onboarding service over plain HTTP."""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from dstack.errors import DstackError
from dstack.transport.server import failure, prpc_app
from kms.onboard_service import OnboardService
from kms.service import KmsService

VERSION = "0.1.0"


def kms_app(service: KmsService) -> FastAPI:
    """The application of the TLS listener."""
    return _with_health(
        prpc_app(service.methods(), prefix="KMS.", headers={"X-App-Version": f"v{VERSION} (dstack-python)"})
    )


def onboard_app(service: OnboardService) -> FastAPI:
    """The application of the plain listener."""
    app = _with_health(prpc_app(service.methods(), prefix="Onboard."))

    def finish() -> Response:
        try:
            service.onboarding.require_keys()
        except DstackError as exc:
            return failure(exc)
        service.finish()
        return PlainTextResponse("OK")

    app.add_api_route("/finish", finish, methods=["GET"], response_model=None)
    return app


def _with_health(app: FastAPI) -> FastAPI:
    def health() -> Response:
        return PlainTextResponse("OK")

    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    return app
