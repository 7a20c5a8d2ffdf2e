"""The messages of the guest agent, spelled as upstream spells them (guest.md 4.3).

Their numbers are those of `agent_rpc.proto` in upstream's repository. The last ones are the legacy agent's
(guest.md 4.4).
"""

from __future__ import annotations

from dataclasses import dataclass

from dstack.wire.fields import boolean, many_octets, octets, string, strings, uint64


@dataclass(frozen=True, slots=True)
class GetTlsKeyRequest:
    """A fresh key and a certificate for it; times in seconds since 1970."""

    subject: str = string(1)
    alt_names: tuple[str, ...] = strings(2)
    usage_ra_tls: bool = boolean(3)
    usage_server_auth: bool = boolean(4)
    usage_client_auth: bool = boolean(5)
    not_before: int | None = uint64(6, optional=True)
    not_after: int | None = uint64(7, optional=True)
    with_app_info: bool = boolean(8)


@dataclass(frozen=True, slots=True)
class GetTlsKeyResponse:
    """The key as PKCS#8 PEM; the chain leaf first, each PEM."""

    key: str = string(1)
    certificate_chain: tuple[str, ...] = strings(2)


@dataclass(frozen=True, slots=True)
class GetKeyRequest:
    """The key of a path; purpose and algorithm do not change its bytes."""

    path: str = string(1)
    purpose: str = string(2)
    algorithm: str = string(3)


@dataclass(frozen=True, slots=True)
class GetKeyResponse:
    """The key, the app key's signature over it, the KMS's over the app key."""

    key: bytes = octets(1)
    signature_chain: tuple[bytes, ...] = many_octets(2)


@dataclass(frozen=True, slots=True)
class GetQuoteRequest:
    """A quote over at most 64 bytes of report data, also for Attest."""

    report_data: bytes = octets(1)


@dataclass(frozen=True, slots=True)
class GetQuoteResponse:
    """A quote, its event log as JSON text, the padded report data, the VM config as JSON text."""

    quote: bytes = octets(1)
    event_log: str = string(2)
    report_data: bytes = octets(3)
    vm_config: str = string(4)


@dataclass(frozen=True, slots=True)
class AttestResponse:
    """Evidence in upstream's versioned form."""

    attestation: bytes = octets(1)


@dataclass(frozen=True, slots=True)
class EmitEventRequest:
    """Extend RTMR3 by an event of the application."""

    event: str = string(1)
    payload: bytes = octets(2)


@dataclass(frozen=True, slots=True)
class InfoResponse:
    """What the agent says about its CVM; `tcb_info` is JSON text."""

    app_id: bytes = octets(1)
    instance_id: bytes = octets(2)
    app_cert: str = string(3)
    tcb_info: str = string(4)
    app_name: str = string(5)
    device_id: bytes = octets(8)
    mr_aggregated: bytes = octets(9)
    os_image_hash: bytes = octets(10)
    key_provider_info: str = string(12)
    compose_hash: bytes = octets(13)
    vm_config: str = string(14)
    cloud_vendor: str = string(15)
    cloud_product: str = string(16)


@dataclass(frozen=True, slots=True)
class SignRequest:
    """Sign data with the key of the path `vms`."""

    algorithm: str = string(1)
    data: bytes = octets(2)


@dataclass(frozen=True, slots=True)
class SignResponse:
    """The signature, the chain (it, the app key's, the KMS's), the public key."""

    signature: bytes = octets(1)
    signature_chain: tuple[bytes, ...] = many_octets(2)
    public_key: bytes = octets(3)


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """The question whether data was signed by a key."""

    algorithm: str = string(1)
    data: bytes = octets(2)
    signature: bytes = octets(3)
    public_key: bytes = octets(4)


@dataclass(frozen=True, slots=True)
class VerifyResponse:
    """The answer to `VerifyRequest`."""

    valid: bool = boolean(1)


@dataclass(frozen=True, slots=True)
class VersionResponse:
    """The agent's version and revision."""

    version: str = string(1)
    rev: str = string(2)


@dataclass(frozen=True, slots=True)
class DeriveKeyRequest:
    """Legacy: the P-256 key of a path, or a fresh one, and a certificate for it."""

    path: str = string(1)
    subject: str = string(2)
    alt_names: tuple[str, ...] = strings(3)
    usage_ra_tls: bool = boolean(4)
    usage_server_auth: bool = boolean(5)
    usage_client_auth: bool = boolean(6)
    random_seed: bool = boolean(7)


@dataclass(frozen=True, slots=True)
class DeriveK256KeyRequest:
    """Legacy: the secp256k1 key of a path."""

    path: str = string(1)
    purpose: str = string(2)


@dataclass(frozen=True, slots=True)
class DeriveK256KeyResponse:
    """The key, the app key's signature over it, the KMS's over the app key."""

    k256_key: bytes = octets(1)
    k256_signature_chain: tuple[bytes, ...] = many_octets(2)


@dataclass(frozen=True, slots=True)
class TdxQuoteRequest:
    """Legacy: a quote over the digest of some content; `raw` means: over exactly these 64 bytes."""

    report_data: bytes = octets(1)
    hash_algorithm: str = string(2)
    prefix: str = string(3)


@dataclass(frozen=True, slots=True)
class TdxQuoteResponse:
    """A quote in hexadecimal, which some builds begin with `0x`; its event log as JSON text; how it was asked for."""

    quote: str = string(1)
    event_log: str = string(2)
    hash_algorithm: str = string(3)
    prefix: str = string(4)
