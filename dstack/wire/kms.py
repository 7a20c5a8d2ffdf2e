"""The messages of the KMS and of its onboarding, spelled as upstream spells them (kms.md 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from dstack.wire.fields import boolean, many, octets, one, string, strings, uint32, uint64


@dataclass(frozen=True, slots=True)
class GetAppKeyRequest:
    """An app asks for its keys; who asks is said by the TLS certificate alone."""

    api_version: int = uint32(1)
    vm_config: str = string(2)


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """The keys of an app in another epoch than the current one. Not upstream's."""

    key_epoch: int = uint64(1)
    disk_crypt_key: bytes = octets(2)
    env_crypt_key: bytes = octets(3)
    k256_key: bytes = octets(4)
    k256_signature: bytes = octets(5)
    served_until: int = uint64(6)


@dataclass(frozen=True, slots=True)
class AppKeyResponse:
    """The keys of an app. `tproxy_app_id` repeats `gateway_app_id` for old clients.

    The last two are not upstream's: the epoch of these keys, and those of the one before, as long as it is served.
    """

    ca_cert: str = string(1)
    disk_crypt_key: bytes = octets(2)
    env_crypt_key: bytes = octets(3)
    k256_key: bytes = octets(4)
    k256_signature: bytes = octets(5)
    tproxy_app_id: str = string(6)
    gateway_app_id: str = string(7)
    os_image_hash: bytes = octets(8)
    key_epoch: int = uint64(100, ours=True)
    previous: EpochKeys | None = one(EpochKeys, 101, ours=True)  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class GetKmsKeyRequest:
    """A new KMS asks for the root keys."""

    vm_config: str = string(1)


@dataclass(frozen=True, slots=True)
class KmsKeys:
    """One set of root keys: the CA key as PKCS#8 PEM, the k256 scalar as bytes."""

    ca_key: str = string(1)
    k256_key: bytes = octets(2)


@dataclass(frozen=True, slots=True)
class KmsKeyResponse:
    """The root keys, exactly one set, and the temp CA's key."""

    temp_ca_key: str = string(1)
    keys: tuple[KmsKeys, ...] = many(KmsKeys, 2)


@dataclass(frozen=True, slots=True)
class AppIdRequest:
    """The app whose env key is wanted; upstream calls the message `AppId`. The epoch is not upstream's."""

    app_id: bytes = octets(1)
    key_epoch: int | None = uint64(100, optional=True, ours=True)


@dataclass(frozen=True, slots=True)
class PublicKeyResponse:
    """An app's env key and the root's word for it, in the older form and with a time."""

    public_key: bytes = octets(1)
    signature: bytes = octets(2)
    timestamp: int = uint64(3)
    signature_v1: bytes = octets(4)
    key_epoch: int = uint64(100, ours=True)


@dataclass(frozen=True, slots=True)
class BootstrapRequest:
    """Make fresh root keys, and a server certificate for this name."""

    domain: str = string(1)


@dataclass(frozen=True, slots=True)
class BootstrapResponse:
    """The public halves of fresh root keys, and evidence bound to both."""

    ca_pubkey: bytes = octets(1)
    k256_pubkey: bytes = octets(2)
    attestation: bytes = octets(3)


@dataclass(frozen=True, slots=True)
class GetMetaResponse:
    """What a KMS says of itself; nothing in it is proven."""

    ca_cert: str = string(1)
    allow_any_upgrade: bool = boolean(2)
    k256_pubkey: bytes = octets(3)
    bootstrap_info: BootstrapResponse | None = one(BootstrapResponse, 4)  # noqa: RUF009
    is_dev: bool = boolean(5)
    gateway_app_id: str | None = string(6, optional=True)
    kms_contract_address: str | None = string(7, optional=True)
    chain_id: int | None = uint64(8, optional=True)
    app_auth_implementation: str | None = string(9, optional=True)


@dataclass(frozen=True, slots=True)
class GetTempCaCertResponse:
    """The authority that callers certify themselves with, and the root; all PEM."""

    temp_ca_cert: str = string(1)
    temp_ca_key: str = string(2)
    ca_cert: str = string(3)


@dataclass(frozen=True, slots=True)
class SignCertRequest:
    """An app asks for a certificate."""

    api_version: int = uint32(1)
    csr: bytes = octets(2)
    signature: bytes = octets(3)
    vm_config: str = string(4)


@dataclass(frozen=True, slots=True)
class SignCertResponse:
    """Leaf, app CA, root; each PEM."""

    certificate_chain: tuple[str, ...] = strings(1)


@dataclass(frozen=True, slots=True)
class OnboardRequest:
    """Fetch the root keys from another KMS, and make a server certificate for this name."""

    source_url: str = string(1)
    domain: str = string(2)


@dataclass(frozen=True, slots=True)
class OnboardResponse:
    """The k256 root key that was received."""

    k256_pubkey: bytes = octets(1)


@dataclass(frozen=True, slots=True)
class AttestationInfoResponse:
    """What this KMS would be judged by; `attestation_mode` is the older name of `tee_variant`."""

    device_id: bytes = octets(1)
    mr_aggregated: bytes = octets(2)
    os_image_hash: bytes = octets(3)
    tee_variant: str = string(4, alias="attestation_mode")
    site_name: str = string(5)
    eth_rpc_url: str = string(6)
    kms_contract_address: str = string(7)
    ppid: bytes = octets(8)


@dataclass(frozen=True, slots=True)
class LegacyClearImageCacheRequest:
    """The same up to 0.5.11, when it was a method of the KMS service and carried its token."""

    token: str = string(1)
    image_hash: str = string(2)
    config_hash: str = string(3)


@dataclass(frozen=True, slots=True)
class ClearImageCacheRequest:
    """Forget a downloaded image or a computed measurement; the operator's listener only."""

    image_hash: str = string(1)
    config_hash: str = string(2)
