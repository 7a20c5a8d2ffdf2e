"""What auth servers have in common: the question of a KMS over HTTP, and the form of the answer (kms.md 6.3).

A KMS of upstream or ours asks `POST /bootAuth/app` and `POST /bootAuth/kms`, and `GET /` for what it publishes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from starlette.concurrency import run_in_threadpool

from dstack.errors import ConfigError, DstackError, InputError, ServiceBusyError
from dstack.transport.listener import Listener
from dstack.transport.server import read_body
from dstack.transport.signals import exit_at_signal
from dstack.values import bytes_from_hex

INVALID_REQUEST = "invalid authorization request"
BACKEND_UNAVAILABLE = "authorization backend unavailable"
ZERO_ADDRESS = "0x" + "00" * 20

_BAD_REQUEST = 400
_TEXT_LIMIT = 256
_ADVISORIES_LIMIT = 256

_log = logging.getLogger("auth")

Kind = Literal["app", "kms"]


class BootRequest(BaseModel):
    """Upstream's BootInfo in JSON: hexadecimal with or without `0x`, at most the lengths that its values have."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", alias_generator=to_camel)

    mr_aggregated: str = Field(max_length=_TEXT_LIMIT)
    os_image_hash: str = Field(max_length=_TEXT_LIMIT)
    app_id: str = Field(max_length=_TEXT_LIMIT)
    compose_hash: str = Field(max_length=_TEXT_LIMIT)
    instance_id: str = Field(max_length=_TEXT_LIMIT)
    device_id: str = Field(max_length=_TEXT_LIMIT)
    mr_system: str = Field("", max_length=_TEXT_LIMIT)
    tcb_status: str = Field("", max_length=_TEXT_LIMIT)
    advisory_ids: list[str] = Field(default_factory=list, max_length=_ADVISORIES_LIMIT)


@dataclass(frozen=True, slots=True)
class Answer:
    """Yes or no, and why not."""

    is_allowed: bool
    reason: str = ""
    gateway_app_id: str = ""

    def to_json(self) -> str:
        """As upstream's KMS reads it."""
        return json.dumps(
            {"isAllowed": self.is_allowed, "reason": self.reason, "gatewayAppId": self.gateway_app_id},
            separators=(",", ":"),
        )


class Decider(Protocol):
    """What an auth server decides by."""

    def decide(self, kind: Kind, request: BootRequest) -> Answer:
        """Whether a machine may have an app's keys, or be a KMS.

        Raises:
            InputError: The request holds something that is not of its form.
            UnavailableError: It could not be decided.
        """
        ...

    def about(self) -> Mapping[str, object]:
        """What the KMS publishes: contract, chain, gateway, implementation.

        Raises:
            UnavailableError: It could not be asked.
        """
        ...


def auth_app(decider: Decider) -> FastAPI:
    """The application of an auth server."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def boot_auth(kind: str, request: Request) -> Response:
        if kind not in ("app", "kms"):
            return _answer(Answer(False, INVALID_REQUEST), 404)
        try:
            asked = BootRequest.model_validate_json(await read_body(request))
            return await run_in_threadpool(_decide, decider, "app" if kind == "app" else "kms", asked)
        except ServiceBusyError as exc:
            _log.warning("%s", exc)
            return _answer(Answer(False, BACKEND_UNAVAILABLE), 503)
        except (InputError, ValidationError) as exc:
            _log.warning("refused a request that is not of its form: %s", _where(exc))
            return _answer(Answer(False, INVALID_REQUEST), _BAD_REQUEST)

    def about() -> Response:
        try:
            return Response(json.dumps({"status": "ok", **decider.about()}), media_type="application/json")
        except DstackError as exc:
            _log.warning("%s", exc)
            return Response(
                json.dumps({"status": "error", "message": BACKEND_UNAVAILABLE}), 500, None, "application/json"
            )

    def health() -> Response:
        return PlainTextResponse("OK")

    app.add_api_route("/bootAuth/{kind}", boot_auth, methods=["POST"], response_model=None)
    app.add_api_route("/", about, methods=["GET"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    return app


def padded(text: str, size: int, what: str) -> bytes:
    """Hexadecimal as upstream's auth-eth reads it: filled up with zeros at the left; empty is zero.

    Raises:
        InputError: Not hexadecimal, or longer than *size*.
    """
    digits = re.sub("^0[xX]", "", text)
    raw = bytes_from_hex(digits if len(digits) % 2 == 0 else "0" + digits, what=what)
    if len(raw) > size:
        raise InputError(f"{what}: want at most {size} bytes, got {len(raw)}")
    return raw.rjust(size, b"\0")


def serve(
    description: str, default_port: int, opened: Callable[[Mapping[str, str]], AbstractContextManager[Decider]]
) -> int:
    """Run an auth server as a program until SIGTERM or SIGINT, set up by environment variables.

    Returns:
        The exit code: that of the error which ended it.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    signal.signal(signal.SIGTERM, exit_at_signal)
    try:
        with opened(os.environ) as decider:
            listener = Listener(
                auth_app(decider),
                host=os.environ.get("HOST") or "127.0.0.1",
                port=_port(os.environ.get("PORT") or str(default_port)),
            )
            _log.info("answering at port %d", listener.port)
            listener.run()
    except DstackError as exc:
        sys.stderr.write(f"auth: {exc}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _decide(decider: Decider, kind: Kind, request: BootRequest) -> Response:
    try:
        return _answer(decider.decide(kind, request))
    except InputError:
        raise
    except DstackError as exc:
        _log.warning("%s: %s", kind, exc)
        return _answer(Answer(False, BACKEND_UNAVAILABLE))


def _answer(answer: Answer, status: int = 200) -> Response:
    return Response(answer.to_json(), status_code=status, media_type="application/json")


def _where(error: InputError | ValidationError) -> str:
    """What was wrong, without what came."""
    if isinstance(error, InputError):
        return str(error)
    return "; ".join(".".join(map(str, one["loc"])) or "body" for one in error.errors(include_input=False))


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 0xFFFF:
        raise ConfigError(f"PORT: want 0 to 65535, got {text[:20]!r}")
    return int(text)
