"""The quoting enclave's part of a quote: steps 9 to 12 of `docs/verification-steps.md`."""

from __future__ import annotations

import hashlib
import hmac

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from dstack.attestation.certificates import p256_key
from dstack.attestation.quote import EnclaveReport, Quote, QuoteSignature
from dstack.attestation.tcb import QeIdentity
from dstack.errors import QuoteUntrustedError

_COORDINATE = 32
_DEBUG = 1 << 1


def check_quoting_enclave(quote: Quote, pck: x509.Certificate, identity: QeIdentity) -> None:
    """Require that the platform's key vouches for a known enclave, it for a key, and that for the quote."""
    signature = quote.signature

    # (9) The PCK key signed the QE report.
    require_signature(
        p256_key(pck, step=9), signature.qe_report_signature, signature.qe_report_raw, step=9, what="QE report"
    )

    # (10) The QE report binds the attestation key.
    _check_key_binding(signature)

    # (11) The enclave is the one that Intel vouches for, and cannot be looked into.
    _check_identity(signature.qe_report, identity)

    # (12) The attestation key signed header and body.
    key = _attestation_key(signature.attestation_key)
    require_signature(key, signature.body_signature, quote.signed, step=12, what="quote")


def require_signature(
    key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, *, step: int, what: str
) -> None:
    """Require an ECDSA P-256 SHA-256 signature of 64 bytes, r||s."""
    r, s = (int.from_bytes(half, "big") for half in (signature[:_COORDINATE], signature[_COORDINATE:]))
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as exc:
        raise QuoteUntrustedError(step, f"{what}: its signature does not verify") from exc


def is_debug_enclave(report: EnclaveReport) -> bool:
    """Whether the enclave's memory can be read with a debugger."""
    return bool(report.attributes[0] & _DEBUG)


def _check_key_binding(signature: QuoteSignature) -> None:
    digest = hashlib.sha256(signature.attestation_key + signature.qe_auth_data).digest()
    if not hmac.compare_digest(signature.qe_report.report_data, digest + bytes(32)):
        raise QuoteUntrustedError(10, "QE report: does not bind the attestation key")


def _check_identity(report: EnclaveReport, identity: QeIdentity) -> None:
    if is_debug_enclave(report):
        raise QuoteUntrustedError(11, "quoting enclave: runs in debug mode")
    if report.mr_signer != identity.mr_signer:
        raise QuoteUntrustedError(
            11, f"quoting enclave: want signer {identity.mr_signer.hex()}, got {report.mr_signer.hex()}"
        )
    if report.isv_prod_id != identity.isv_prod_id:
        raise QuoteUntrustedError(11, f"quoting enclave: want product {identity.isv_prod_id}, got {report.isv_prod_id}")
    if _masked(report.misc_select, identity.misc_select_mask) != _masked(
        identity.misc_select, identity.misc_select_mask
    ):
        raise QuoteUntrustedError(11, f"quoting enclave: MISCSELECT {report.misc_select.hex()} is not vouched for")
    if _masked(report.attributes, identity.attributes_mask) != _masked(identity.attributes, identity.attributes_mask):
        raise QuoteUntrustedError(11, f"quoting enclave: attributes {report.attributes.hex()} are not vouched for")


def _attestation_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    x, y = (int.from_bytes(half, "big") for half in (raw[:_COORDINATE], raw[_COORDINATE:]))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError as exc:
        raise QuoteUntrustedError(12, "attestation key: not a point of P-256") from exc


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(byte & allowed for byte, allowed in zip(value, mask, strict=True))
