"""The legacy guest agent's answers (guest.md 4.4): for apps that were built before there was today's.

Its keys are others than those of `GetKey`: a path alone makes them, and a P-256 key where an app asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI

from dstack.attestation.report_data import APP_DATA, RAW, report_data
from dstack.guest.agent import GuestAgent
from dstack.keys.derivation import AppKeys, derive_p256
from dstack.keys.scalars import p256_from_scalar
from dstack.transport.server import Method, prpc_app
from dstack.wire.guest import (
    DeriveK256KeyRequest,
    DeriveK256KeyResponse,
    DeriveKeyRequest,
    GetKeyRequest,
    GetQuoteRequest,
    GetTlsKeyRequest,
    GetTlsKeyResponse,
    TdxQuoteRequest,
    TdxQuoteResponse,
)

_DEFAULT_HASH = "sha512"


@dataclass(frozen=True, slots=True)
class LegacyAgent:
    """Answers in the legacy agent's words with what today's agent has.

    Attributes:
        agent: Today's.
        keys: The app's.
    """

    agent: GuestAgent
    keys: AppKeys

    def derive_key(self, request: DeriveKeyRequest) -> GetTlsKeyResponse:
        """The P-256 key of a path, the same at every call, or a fresh one; and the chain of its certificate."""
        wishes = GetTlsKeyRequest(
            subject=request.subject,
            alt_names=request.alt_names,
            usage_ra_tls=request.usage_ra_tls,
            usage_server_auth=request.usage_server_auth,
            usage_client_auth=request.usage_client_auth,
        )
        if request.random_seed:
            return self.agent.get_tls_key(wishes)
        return self.agent.get_tls_key(wishes, self._path_key(request.path))

    def derive_k256_key(self, request: DeriveK256KeyRequest) -> DeriveK256KeyResponse:
        """The secp256k1 key of a path, and who vouches for it."""
        answer = self.agent.get_key(GetKeyRequest(request.path, request.purpose, "secp256k1"))
        return DeriveK256KeyResponse(answer.key, answer.signature_chain)

    def tdx_quote(self, request: TdxQuoteRequest) -> TdxQuoteResponse:
        """A quote over the digest of the content under its prefix, or over 64 bytes as they are.

        Raises:
            InputError: An unknown digest, or raw content that is not 64 bytes.
        """
        is_raw = request.hash_algorithm == RAW
        prefix = "" if is_raw else request.prefix or APP_DATA
        bound = report_data(prefix, request.report_data, request.hash_algorithm)
        answer = self.agent.get_quote(GetQuoteRequest(bound))
        return TdxQuoteResponse(answer.quote.hex(), answer.event_log, request.hash_algorithm or _DEFAULT_HASH, prefix)

    def raw_quote(self, request: GetQuoteRequest) -> TdxQuoteResponse:
        """A quote over 64 bytes as they are."""
        return self.tdx_quote(TdxQuoteRequest(request.report_data, RAW))

    def _path_key(self, path: str) -> ec.EllipticCurvePrivateKey:
        return p256_from_scalar(derive_p256(self.keys.k256_key, (path.encode(),)))


def legacy_app(agent: LegacyAgent) -> FastAPI:
    """The application at `tappd.sock`: `/prpc/Tappd.<Method>`; and `/Info`, where one of the official clients looks."""
    information = {
        "Info": Method(None, lambda _, __: agent.agent.info()),
        "Version": Method(None, lambda _, __: agent.agent.version()),
    }
    service = {
        "DeriveKey": Method(DeriveKeyRequest, lambda request, _: agent.derive_key(request)),
        "DeriveK256Key": Method(DeriveK256KeyRequest, lambda request, _: agent.derive_k256_key(request)),
        "TdxQuote": Method(TdxQuoteRequest, lambda request, _: agent.tdx_quote(request)),
        "RawQuote": Method(GetQuoteRequest, lambda request, _: agent.raw_quote(request)),
        **information,
    }
    app = prpc_app(service, prefix="Tappd.")
    app.mount("/", prpc_app(information, prefix="Tappd.", path=""))
    return app
