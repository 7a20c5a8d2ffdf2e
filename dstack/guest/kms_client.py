"""Getting an app's keys from a KMS (kms.md 4.4).

(1) Anybody gives us a temporary CA: nothing is trusted yet. (2) With it we certify a fresh key and bind our evidence to
that key. (3) We connect again, now trusting only the root we were told, and judge the server's certificate on that very
connection: it must be meant for KMS calls, and evidence in it must be bound to its key. (4) We ask for the keys.

That root is whatever step 1 answered. It becomes meaningful by being measured (`key-provider`), pinned
(`key_provider_id`), or by `KmsTrust`, which demands evidence of the KMS itself.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.appraise import appraise
from dstack.attestation.certificates import parse_certificate
from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import parse_quote
from dstack.attestation.ratls import certificate_report_data, evidence_extensions, evidence_from_certificate
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import STRICT, VerificationPolicy
from dstack.attestation.verify import verify_quote
from dstack.errors import AppraisalError, EvidenceMalformedError, InputError, PeerRefusedError
from dstack.guest.app_keys import KmsProvider, PreviousKeys, ProvidedKeys
from dstack.guest.platform import Platform, platform_evidence
from dstack.keys.certs import OID_CERTIFICATE_USAGE, USAGE_KMS_RPC, build_client_cert, certificate_payload
from dstack.keys.derivation import AppKeys
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem, spki_der
from dstack.keys.scalars import require_secret
from dstack.keys.signature_chain import SIGNATURE_SIZE
from dstack.transport.client import PrpcClient
from dstack.transport.collateral import CollateralSource
from dstack.transport.tls import TlsIdentity, client_context, unauthenticated_client_context
from dstack.values import OsImageHash
from dstack.wire.kms import AppKeyResponse, EpochKeys, GetAppKeyRequest, GetTempCaCertResponse

API_VERSION = 1
_LAST_SECOND = 253402300799


@dataclass(frozen=True, slots=True)
class KmsTrust:
    """With it, a KMS must show evidence that verifies and appraises."""

    roots: TrustedRoots
    collateral: CollateralSource
    policy: VerificationPolicy = STRICT


def request_app_keys(kms_url: str, platform: Platform, *, at: datetime, trust: KmsTrust | None = None) -> ProvidedKeys:
    """Ask a KMS for the keys of this machine's app.

    Args:
        kms_url: Without `/prpc`; its host must be the name in the KMS's certificate.
        platform: The machine; its RTMR3 stands at `boot-mr-done`.
        at: Now.
        trust: What the KMS's own evidence must pass; None takes a KMS without evidence.

    Raises:
        KeyReleaseDeniedError: The KMS asked the chain, and the chain forbids it.
        PeerRefusedError: The KMS refused otherwise, or answered keys that are none.
        AppraisalError: Its certificate is not meant for KMS calls, or its evidence is missing or not bound to its key.
        QuoteUntrustedError: Its quote did not verify.
        PeerUnavailableError: It did not answer, or not under the root and name it must have.
    """
    base_url = kms_url.rstrip("/") + "/prpc"

    # (1)
    with PrpcClient(base_url, tls=unauthenticated_client_context()) as client:
        temporary = client.call("GetTempCaCert", None, GetTempCaCertResponse)
    root = _certificate(temporary.ca_cert, "ca_cert")

    # (2)
    identity = _identity(temporary, platform, at)

    # (3, 4)
    tls = client_context(ca_pem=certificate_pem(root), identity=identity)
    request = GetAppKeyRequest(api_version=API_VERSION, vm_config=platform.config)
    with PrpcClient(base_url, tls=tls, accept_peer=lambda der: accept_kms(der, trust, at)) as client:
        answer = client.call("GetAppKey", request, AppKeyResponse)

    provider = KmsProvider(
        url=kms_url,
        root_spki=spki_der(root),
        temp_ca_cert_pem=temporary.temp_ca_cert,
        temp_ca_key_pem=temporary.temp_ca_key,
        os_image_hash=_os_image_hash(answer),
    )
    return ProvidedKeys(
        _app_keys(answer), certificate_pem(root), answer.gateway_app_id, provider, answer.key_epoch, _previous(answer)
    )


def _identity(temporary: GetTempCaCertResponse, platform: Platform, at: datetime) -> TlsIdentity:
    """A certificate for a fresh key, carrying evidence that is bound to that key."""
    authority = _certificate(temporary.temp_ca_cert, "temp_ca_cert")
    try:
        authority_key = load_private_key(temporary.temp_ca_key)
    except InputError as exc:
        raise PeerRefusedError(f"KMS: temp_ca_key: {exc}") from exc
    key = ec.generate_private_key(ec.SECP256R1())
    evidence = platform_evidence(platform, ratls_report_data(spki_der(key)))
    certificate = build_client_cert(key, authority, authority_key, evidence_extensions(evidence), at=at)
    return TlsIdentity(certificate_pem(certificate), private_key_pem(key))


def accept_kms(certificate_der: bytes, trust: KmsTrust | None, at: datetime) -> None:
    """Judge the server's certificate; TLS has verified its chain and name already.

    Raises:
        AppraisalError: It is not meant for KMS calls, or its evidence is missing or not bound to its key.
        QuoteUntrustedError: Its quote did not verify.
    """
    certificate = parse_certificate(certificate_der, what="KMS certificate", error=EvidenceMalformedError)
    usage = certificate_payload(certificate, OID_CERTIFICATE_USAGE)
    if usage != USAGE_KMS_RPC:
        raise AppraisalError(f"KMS certificate: want usage {USAGE_KMS_RPC!r}, got {usage!r}")
    evidence = evidence_from_certificate(certificate_der)
    if evidence is None:
        if trust is not None:
            raise AppraisalError("KMS certificate: want evidence of the KMS, got none")
        return
    expected = certificate_report_data(certificate_der)
    if not hmac.compare_digest(parse_quote(evidence.quote).report_data, expected):
        raise AppraisalError("KMS certificate: its evidence is not bound to its key")
    if trust is not None:
        _verify(evidence, certificate_der, trust, at)


def _verify(evidence: Evidence, certificate_der: bytes, trust: KmsTrust, at: datetime) -> None:
    collateral = trust.collateral.collateral_for(parse_quote(evidence.quote))
    verified = verify_quote(evidence.quote, collateral, roots=trust.roots, at=at, policy=trust.policy)
    appraise(evidence, verified, expected_report_data=certificate_report_data(certificate_der))


def _previous(answer: AppKeyResponse) -> PreviousKeys | None:
    previous = answer.previous
    if previous is None:
        return None
    if previous.key_epoch + 1 != answer.key_epoch or previous.served_until > _LAST_SECOND:
        raise PeerRefusedError(
            f"KMS: previous: want the epoch before {answer.key_epoch} and an end before the year 10000, "
            f"got {previous.key_epoch} until {previous.served_until}"
        )
    served_until = datetime.fromtimestamp(previous.served_until, UTC)
    return PreviousKeys(_app_keys(previous), previous.key_epoch, served_until)


def _app_keys(answer: AppKeyResponse | EpochKeys) -> AppKeys:
    try:
        for name in ("disk_crypt_key", "env_crypt_key", "k256_key"):
            require_secret(getattr(answer, name), name)
    except InputError as exc:
        raise PeerRefusedError(f"KMS: {exc}") from exc
    if len(answer.k256_signature) != SIGNATURE_SIZE:
        raise PeerRefusedError(f"KMS: k256_signature: want {SIGNATURE_SIZE} bytes, got {len(answer.k256_signature)}")
    return AppKeys(answer.disk_crypt_key, answer.env_crypt_key, answer.k256_key, answer.k256_signature)


def _os_image_hash(answer: AppKeyResponse) -> OsImageHash:
    try:
        return OsImageHash(answer.os_image_hash)
    except InputError as exc:
        raise PeerRefusedError(f"KMS: os_image_hash: {exc}") from exc


def _certificate(pem: str, name: str) -> x509.Certificate:
    try:
        return load_certificate(pem)
    except InputError as exc:
        raise PeerRefusedError(f"KMS: {name}: {exc}") from exc
