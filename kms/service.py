"""The methods of the KMS service: each parses, calls, and puts the answer into upstream's words (kms.md 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dstack.chain.facts import Facts
from dstack.errors import InputError, MessageMalformedError
from dstack.transport.server import CallContext, Method
from dstack.values import AppId
from dstack.wire.kms import (
    AppIdRequest,
    AppKeyResponse,
    BootstrapResponse,
    EpochKeys,
    GetAppKeyRequest,
    GetKmsKeyRequest,
    GetMetaResponse,
    GetTempCaCertResponse,
    KmsKeyResponse,
    LegacyClearImageCacheRequest,
    PublicKeyResponse,
    SignCertRequest,
    SignCertResponse,
)
from dstack.wire.message import from_json
from kms.admin import LegacyCache
from kms.keystore import KeySet
from kms.release import KeyRelease, ReleasedKeys

_API_VERSION = 1
_ANY_GATEWAY = "any"


class ChainFacts(Protocol):
    """What the chain says besides decisions."""

    def recent_facts(self) -> Facts | None:
        """What was last read of the contract, without waiting for the chain; None before anything was."""
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
        cache: ClearImageCache as it was up to 0.5.11; None where it is not to be had here.
    """

    keys: KeySet
    release: KeyRelease
    chain: ChainFacts
    bootstrap_info: bytes | None
    simulated: bool
    cache: LegacyCache | None = None

    def methods(self) -> dict[str, Method]:
        """The table that `prpc_app` serves."""
        table = {
            "GetMeta": Method(None, self.get_meta),
            "GetTempCaCert": Method(None, self.get_temp_ca_cert),
            "GetAppKey": Method(GetAppKeyRequest, self.get_app_key),
            "GetKmsKey": Method(GetKmsKeyRequest, self.get_kms_key),
            "GetAppEnvEncryptPubKey": Method(AppIdRequest, self.get_app_env_encrypt_pub_key),
            "SignCert": Method(SignCertRequest, self.sign_cert),
        }
        if self.cache is not None:
            table["ClearImageCache"] = Method(LegacyClearImageCacheRequest, self.cache.clear)
        return table

    def get_meta(self, _request: None, _context: CallContext) -> GetMetaResponse:
        """What this KMS says of itself; of the chain, what was last read."""
        facts = self.chain.recent_facts()
        return GetMetaResponse(
            ca_cert=self.keys.root_ca_pem,
            allow_any_upgrade=False,
            k256_pubkey=self.keys.roots.k256_pubkey,
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
        gateway_app_id = self._told_gateway(released.permit.granted.gateway_app_id)
        return AppKeyResponse(
            ca_cert=self.keys.root_ca_pem,
            disk_crypt_key=released.keys.disk_crypt_key,
            env_crypt_key=released.keys.env_crypt_key,
            k256_key=released.keys.k256_key,
            k256_signature=released.keys.k256_signature,
            tproxy_app_id=gateway_app_id,
            gateway_app_id=gateway_app_id,
            os_image_hash=released.permit.boot.os_image_hash,
            key_epoch=released.epoch,
            previous=_previous(released),
        )

    def get_kms_key(self, request: GetKmsKeyRequest, context: CallContext) -> KmsKeyResponse:
        """The root keys, for another KMS at the other end of the connection."""
        keys = self.release.root_keys(context.peer_certificate_der, request.vm_config, context.request_id)
        return KmsKeyResponse(temp_ca_key=self.keys.temp_ca.key_pem, keys=(keys,))

    def get_app_env_encrypt_pub_key(self, request: AppIdRequest, context: CallContext) -> PublicKeyResponse:
        """The public key that an app's environment is encrypted to."""
        if len(request.app_id) != AppId.SIZE:
            raise MessageMalformedError("app_id must be 20 bytes")
        key = self.release.env_key(AppId(request.app_id), request.key_epoch, context.request_id)
        return PublicKeyResponse(key.public_key, key.signature, key.timestamp, key.signature_v1, key.epoch)

    def sign_cert(self, request: SignCertRequest, context: CallContext) -> SignCertResponse:
        """A certificate for an app's own use; the evidence is in the request, the connection may be anybody's."""
        chain = self.release.certificate(
            self.keys.root_ca_pem,
            request.api_version,
            request.csr,
            request.signature,
            request.vm_config,
            context.request_id,
        )
        return SignCertResponse(chain)

    def _told_gateway(self, named: str) -> str:
        """The gateway that apps may register at. Upstream's `any`, for all of them, is none outside development."""
        return "" if named.strip().lower() == _ANY_GATEWAY and not self.simulated else named

    def _bootstrap_info(self) -> BootstrapResponse | None:
        try:
            return None if self.bootstrap_info is None else from_json(BootstrapResponse, self.bootstrap_info)
        except InputError:
            return None


def _previous(released: ReleasedKeys) -> EpochKeys | None:
    """The keys of the epoch before, so that a guest can move its data from one to the other."""
    until = released.permit.granted.epochs.previous_until
    if released.previous is None or until is None:
        return None
    return EpochKeys(
        key_epoch=released.epoch - 1,
        disk_crypt_key=released.previous.disk_crypt_key,
        env_crypt_key=released.previous.env_crypt_key,
        k256_key=released.previous.k256_key,
        k256_signature=released.previous.k256_signature,
        served_until=int(until.timestamp()),
    )
