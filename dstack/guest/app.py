"""The socket the guest agent listens at: `POST /<Method>` in JSON or protobuf (guest.md 4.1, 4.2)."""

from __future__ import annotations

from fastapi import FastAPI

from dstack.guest.agent import GuestAgent
from dstack.transport.server import Method, prpc_app
from dstack.wire.guest import (
    EmitEventRequest,
    GetKeyRequest,
    GetQuoteRequest,
    GetTlsKeyRequest,
    SignRequest,
    VerifyRequest,
)

# Every user of the guest is the app: containers connect under whatever user they run as.
SOCKET_MODE = 0o777


def agent_app(agent: GuestAgent) -> FastAPI:
    """The application of *agent*."""
    service = {
        "GetQuote": Method(GetQuoteRequest, lambda request, _: agent.get_quote(request)),
        "Attest": Method(GetQuoteRequest, lambda request, _: agent.attest(request)),
        "GetTlsKey": Method(GetTlsKeyRequest, lambda request, _: agent.get_tls_key(request)),
        "GetKey": Method(GetKeyRequest, lambda request, _: agent.get_key(request)),
        "Sign": Method(SignRequest, lambda request, _: agent.sign(request)),
        "Verify": Method(VerifyRequest, lambda request, _: agent.verify(request)),
        "EmitEvent": Method(EmitEventRequest, lambda request, _: agent.emit_event(request)),
        "Info": Method(None, lambda _, __: agent.info()),
        "Version": Method(None, lambda _, __: agent.version()),
    }
    return prpc_app(service, prefix="DstackGuest.", path="")
