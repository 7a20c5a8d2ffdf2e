"""The quoting enclave's part of a quote: steps 10 to 12 of `docs/verification-steps.md`."""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.quote import EnclaveReport, QuoteSignature
from dstack.attestation.tcb import QeIdentity
from dstack.errors import QuoteUntrustedError

_COORDINATE = 32
_DEBUG = 1 << 1


def is_debug_enclave(report: EnclaveReport) -> bool:
    """Whether the enclave's memory can be read with a debugger."""
    return bool(report.attributes[0] & _DEBUG)


def check_key_binding(signature: QuoteSignature) -> None:
    """Step 10: the QE report binds the attestation key, and nothing else.

    Raises:
        QuoteUntrustedError: It does not.
    """
    digest = hashlib.sha256(signature.attestation_key + signature.qe_auth_data).digest()
    if not hmac.compare_digest(signature.qe_report.report_data, digest + bytes(32)):
        raise QuoteUntrustedError(10, "QE report: does not bind the attestation key")


def check_identity(report: EnclaveReport, identity: QeIdentity) -> None:
    """Step 11: the enclave is the one that Intel vouches for, and cannot be looked into.

    Raises:
        QuoteUntrustedError: It is another enclave, or runs in debug mode.
    """
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


def attestation_key(raw: bytes) -> ec.EllipticCurvePublicKey:
    """Step 12: the attestation key, 64 bytes x||y, as a point of P-256.

    Raises:
        QuoteUntrustedError: It is no point of the curve.
    """
    x, y = (int.from_bytes(half, "big") for half in (raw[:_COORDINATE], raw[_COORDINATE:]))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError as exc:
        raise QuoteUntrustedError(12, "attestation key: not a point of P-256") from exc


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(byte & allowed for byte, allowed in zip(value, mask, strict=True))
