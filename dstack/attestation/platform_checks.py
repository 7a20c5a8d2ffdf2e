"""Items 6 to 11: which platform it is, and whether Intel vouches for its quoting enclave.

A platform shows the same certificates, QE report and attestation key in every quote, so this too is done once for the
same content, and holds while the certificates and the collateral do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.certificates import (
    common_name,
    der_of,
    p256_key,
    parse_chain,
    require_end_entity,
    require_issued,
    require_not_revoked,
    require_signature,
    validity,
)
from dstack.attestation.checklist import Ledger
from dstack.attestation.content_cache import Period
from dstack.attestation.pck import PckExtension, parse_pck_extension
from dstack.attestation.qe import attestation_key, check_identity, check_key_binding
from dstack.attestation.quote import TEE_TDX, Quote
from dstack.attestation.roots import TrustedRoot, TrustedRoots
from dstack.attestation.verify_collateral import VerifiedCollateral, require_pck_authority, require_role
from dstack.errors import QuoteMalformedError, QuoteUntrustedError
from dstack.keys.pem import spki_der

Chain = tuple[x509.Certificate, x509.Certificate, x509.Certificate]


@dataclass(frozen=True, slots=True)
class CheckedPlatform:
    """A platform whose maker is known. Made by `check_platform` alone; holds for `period`, collateral included."""

    extension: PckExtension
    attestation_key: ec.EllipticCurvePublicKey
    period: Period


def trusted_chain(quote: Quote, roots: TrustedRoots) -> tuple[TrustedRoot, Chain]:
    """Item 3: leaf, CA and root of a quote, the root being one of *roots*.

    Raises:
        QuoteMalformedError: The certificates cannot be read.
        QuoteUntrustedError: There are not exactly three, or they end elsewhere.
    """
    chain = parse_chain(quote.signature.pck_chain_pem, what="PCK chain", error=QuoteMalformedError)
    if len(chain) != 3:
        raise QuoteUntrustedError(3, f"PCK chain: want exactly 3 certificates, got {len(chain)}")
    root = roots.find(chain[2])
    if root is None or common_name(chain[2].subject) != root.names.root:
        raise QuoteUntrustedError(3, f"root {common_name(chain[2].subject)[:80]!r} is not a configured root of trust")
    require_issued(chain[2], chain[2], step=3)
    return root, (chain[0], chain[1], chain[2])


def check_platform(
    quote: Quote, chain: Chain, collateral: VerifiedCollateral, at: datetime, ledger: Ledger
) -> CheckedPlatform | None:
    """Check certificates, platform and quoting enclave; None only if *ledger* has written down why."""
    leaf, _, _ = chain
    # (4) The revocation list is of the CA that issued the leaf.
    ledger.run(4, lambda: _check_crl_issuer(chain, collateral), seen="of the CA that issued the leaf", name="issuer")
    # (7) The PCK certificate is genuine and current.
    period = ledger.run(7, lambda: _check_chain(chain, collateral, at), seen=lambda seen: f"valid until {seen.end}")
    # (8) It says which platform this is.
    extension = ledger.run(8, lambda: parse_pck_extension(leaf), seen=_platform_words)
    # (6) The documents are about that platform.
    if extension is None:
        ledger.skip((6,), "the platform is not known")
    else:
        ledger.run(6, lambda: _check_subject(quote, extension, collateral), seen=_subject_words(collateral))
    # (9-11) The platform vouches for a quoting enclave, and that for an attestation key.
    signature = quote.signature
    ledger.run(9, lambda: _check_qe_signature(quote, leaf), seen="by the PCK key")
    ledger.run(10, lambda: check_key_binding(signature), seen="SHA-256 of key and authentication data, then zeros")
    ledger.run(
        11,
        lambda: check_identity(signature.qe_report, collateral.parts.qe_identity),
        seen=f"{collateral.parts.qe_identity.id}, ISVSVN {signature.qe_report.isv_svn}",
    )
    key = ledger.run(
        12, lambda: _own_key(signature.attestation_key, chain), seen="a point of P-256, of no other role", name="key"
    )
    if period is None or extension is None or key is None:
        return None
    return CheckedPlatform(extension, key, period.within(collateral.period))


def _check_crl_issuer(chain: Chain, collateral: VerifiedCollateral) -> None:
    leaf, authority, _ = chain
    issuer = collateral.parts.authority
    if issuer.subject != leaf.issuer or spki_der(issuer) != spki_der(authority):
        raise QuoteUntrustedError(4, "PCK CRL issuer chain: want the CA that issued the PCK certificate")


def _check_chain(chain: Chain, collateral: VerifiedCollateral, at: datetime) -> Period:
    leaf, authority, _ = chain
    parts = collateral.parts
    if der_of(authority) != der_of(parts.authority):
        require_pck_authority(authority, parts, at=at, step=7)
    require_role(leaf, (parts.root.names.pck,), step=7)
    require_end_entity(leaf, at=at, step=7)
    require_issued(leaf, authority, step=7)
    require_not_revoked(leaf, parts.pck_crl, step=7)
    keys = {spki_der(certificate) for certificate in chain}
    if len(keys) != len(chain) or keys & {spki_der(signer) for signer in (parts.tcb_signer, parts.qe_signer)}:
        raise QuoteUntrustedError(7, "chains: want one key per role, got a key in two roles")
    return validity(leaf, "PCK certificate").within(validity(authority, "PCK CA certificate"))


def _check_subject(quote: Quote, platform: PckExtension, collateral: VerifiedCollateral) -> None:
    tdx = quote.tee_type == TEE_TDX
    info, identity = collateral.parts.tcb_info, collateral.parts.qe_identity
    if (info.id, info.version) != ("TDX" if tdx else "SGX", 3) or info.tcb_type != 0:
        raise QuoteUntrustedError(6, f"TCB info: {info.id} version {info.version} type {info.tcb_type} does not fit")
    if (identity.id, identity.version) not in ({("TD_QE", 2), ("TD_QE", 3)} if tdx else {("QE", 2)}):
        raise QuoteUntrustedError(6, f"QE identity: {identity.id} version {identity.version} does not fit the quote")
    if (info.fmspc, info.pce_id) != (platform.fmspc, platform.pce_id):
        raise QuoteUntrustedError(
            6,
            f"TCB info: want FMSPC {platform.fmspc.hex()} and PCEID {platform.pce_id.hex()}, "
            f"got {info.fmspc.hex()} and {info.pce_id.hex()}",
        )


def _check_qe_signature(quote: Quote, leaf: x509.Certificate) -> None:
    signature = quote.signature
    require_signature(
        p256_key(leaf, step=9), signature.qe_report_signature, signature.qe_report_raw, step=9, what="QE report"
    )


def _own_key(raw: bytes, chain: Chain) -> ec.EllipticCurvePublicKey:
    key = attestation_key(raw)
    if spki_der(key) in {spki_der(certificate) for certificate in chain}:
        raise QuoteUntrustedError(12, "attestation key: it is the key of a certificate")
    return key


def _platform_words(platform: PckExtension) -> str:
    return f"FMSPC {platform.fmspc.hex()}, PPID {platform.ppid.hex()}, PCESVN {platform.pce_svn}"


def _subject_words(collateral: VerifiedCollateral) -> str:
    info, identity = collateral.parts.tcb_info, collateral.parts.qe_identity
    return f"{info.id} and {identity.id}, evaluation numbers {info.evaluation_number} and {identity.evaluation_number}"
