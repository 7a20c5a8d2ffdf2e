"""What callers reach: the KMS service over RA-TLS, and before there are keys the onboarding service over plain HTTP.

Each method parses, calls, and puts the answer into upstream's words. Methods of a later version are not in the tables
and answer `Service not found`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from dstack.chain.facts import Facts
from dstack.errors import DstackError, InputError, MessageMalformedError
from dstack.keys.scalars import k256_public_key
from dstack.transport.server import CallContext, Method, failure, prpc_app
from dstack.values import AppId
from dstack.wire.kms import (
    AppIdRequest,
    AppKeyResponse,
    AttestationInfoResponse,
    BootstrapRequest,
    BootstrapResponse,
    GetAppKeyRequest,
    GetMetaResponse,
    GetTempCaCertResponse,
    PublicKeyResponse,
)
from dstack.wire.message import from_json
from kms.authorization import SelfAuthorization
from kms.config import Settings
from kms.keystore import KeySet
from kms.onboard import Onboarding
from kms.release import KeyRelease

VERSION = "0.1.0"

_API_VERSION = 1
_TEE_VARIANT = "dstack-tdx"


class ChainFacts(Protocol):
    """What the chain says besides decisions."""

    def recent_facts(self) -> Facts | None:
        """What was last read of the contract, without waiting for the chain; None before anything was."""
        ...

    def gateway_app_id(self) -> str:
        """The app id of the gateway; empty where none is set.

        Raises:
            ChainUnavailableError: The chain could not be asked.
        """
        ...


@dataclass(frozen=True, slots=True)
class KmsService:
    """The methods of the KMS service.

    Attributes:
        keys: What is published of them, and the temporary CA.
        release: Decides, and derives.
        chain: Facts for answers.
        bootstrap_info: The file of that name, if there is one.
        simulated: Whether a root of trust is configured that is not Intel's.
    """

    keys: KeySet
    release: KeyRelease
    chain: ChainFacts
    bootstrap_info: bytes | None
    simulated: bool

    def methods(self) -> dict[str, Method]:
        """The table that `prpc_app` serves."""
        return {
            "GetMeta": Method(None, self.get_meta),
            "GetTempCaCert": Method(None, self.get_temp_ca_cert),
            "GetAppKey": Method(GetAppKeyRequest, self.get_app_key),
            "GetAppEnvEncryptPubKey": Method(AppIdRequest, self.get_app_env_encrypt_pub_key),
        }

    def get_meta(self, _request: None, _context: CallContext) -> GetMetaResponse:
        """What this KMS says of itself; of the chain, what was last read."""
        facts = self.chain.recent_facts()
        return GetMetaResponse(
            ca_cert=self.keys.root_ca_pem,
            allow_any_upgrade=False,
            k256_pubkey=k256_public_key(self.keys.root.k256),
            bootstrap_info=self._bootstrap_info(),
            is_dev=self.simulated,
            gateway_app_id=facts.gateway_app_id if facts else None,
            kms_contract_address=facts.kms_contract if facts else None,
            chain_id=facts.chain_id if facts else None,
            app_auth_implementation=facts.app_implementation if facts else None,
        )

    def get_temp_ca_cert(self, _request: None, context: CallContext) -> GetTempCaCertResponse:
        """The authority that callers certify themselves with: its key is public and proves nothing."""
        self.release.require_self_recently(context.request_id)
        return GetTempCaCertResponse(
            temp_ca_cert=self.keys.temp_ca.certificate_pem,
            temp_ca_key=self.keys.temp_ca.key_pem,
            ca_cert=self.keys.root_ca_pem,
        )

    def get_app_key(self, request: GetAppKeyRequest, context: CallContext) -> AppKeyResponse:
        """The keys of the app at the other end of the connection."""
        if request.api_version > _API_VERSION:
            raise MessageMalformedError(f"Unsupported API version: {request.api_version}")
        released = self.release.app_keys(context.peer_certificate_der, request.vm_config, context.request_id)
        gateway_app_id = self.chain.gateway_app_id()
        return AppKeyResponse(
            ca_cert=self.keys.root_ca_pem,
            disk_crypt_key=released.keys.disk_crypt_key,
            env_crypt_key=released.keys.env_crypt_key,
            k256_key=released.keys.k256_key,
            k256_signature=released.keys.k256_signature,
            tproxy_app_id=gateway_app_id,
            gateway_app_id=gateway_app_id,
            os_image_hash=released.permit.boot.os_image_hash,
        )

    def get_app_env_encrypt_pub_key(self, request: AppIdRequest, context: CallContext) -> PublicKeyResponse:
        """The public key that an app's environment is encrypted to."""
        if len(request.app_id) != AppId.SIZE:
            raise MessageMalformedError("app_id must be 20 bytes")
        key = self.release.env_key(AppId(request.app_id), context.request_id)
        return PublicKeyResponse(key.public_key, key.signature, key.timestamp, key.signature_v1)

    def _bootstrap_info(self) -> BootstrapResponse | None:
        try:
            return None if self.bootstrap_info is None else from_json(BootstrapResponse, self.bootstrap_info)
        except InputError:
            return None


@dataclass(frozen=True, slots=True)
class OnboardService:
    """The methods of the onboarding service.

    Attributes:
        onboarding: Makes the keys.
        own: What this machine is.
        settings: What an operator wants to see of them.
        finish: Ends the service, after the answer.
    """

    onboarding: Onboarding
    own: SelfAuthorization
    settings: Settings
    finish: Callable[[], None]

    def methods(self) -> dict[str, Method]:
        """The table that `prpc_app` serves."""
        return {
            "Bootstrap": Method(BootstrapRequest, self.bootstrap),
            "GetAttestationInfo": Method(None, self.get_attestation_info),
            "Finish": Method(None, self.finish_onboarding),
        }

    def bootstrap(self, request: BootstrapRequest, context: CallContext) -> BootstrapResponse:
        """Make root keys."""
        return self.onboarding.bootstrap(request.domain, context.request_id)

    def get_attestation_info(self, _request: None, _context: CallContext) -> AttestationInfoResponse:
        """What the contracts must allow before Bootstrap can succeed."""
        appraisal = self.own.appraisal()
        decides = self.settings.core.auth_api
        return AttestationInfoResponse(
            device_id=appraisal.device_id,
            mr_aggregated=appraisal.mr_aggregated,
            os_image_hash=appraisal.os_image_hash,
            tee_variant=_TEE_VARIANT,
            site_name=self.settings.core.site_name,
            eth_rpc_url=decides.shown_rpc_url,
            kms_contract_address=decides.kms_contract,
            ppid=appraisal.verified.ppid,
        )

    def finish_onboarding(self, _request: None, _context: CallContext) -> None:
        """Go on to the KMS service."""
        self.onboarding.require_keys()
        self.finish()


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
