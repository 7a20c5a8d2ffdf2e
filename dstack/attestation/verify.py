"""Who signed a quote: bytes to `VerifiedQuote`, by the numbered steps of `docs/verification-steps.md`.

Two verifiers must agree: the steps below, ours, and the quote library (dcap-qvl), which repeats them and alone matches
TCB levels. Ours is stricter wherever the library was seen to be lax (quote-verification.md section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import dcap_qvl
from cryptography import x509

from dstack.attestation.certificates import (
    common_name,
    der_of,
    p256_key,
    parse_chain,
    parse_crl,
    require_authority,
    require_current_crl,
    require_end_entity,
    require_issued,
    require_not_revoked,
)
from dstack.attestation.collateral import Collateral, serialise_collateral
from dstack.attestation.pck import PckExtension, parse_pck_extension
from dstack.attestation.qe import check_quoting_enclave, require_signature
from dstack.attestation.quote import TEE_TDX, EnclaveReport, Quote, TdReport, parse_quote
from dstack.attestation.roots import TrustedRoot, TrustedRoots
from dstack.attestation.tcb import QeIdentity, TcbInfo, TcbStatus
from dstack.attestation.td import check_attributes, check_enclave, check_module
from dstack.attestation.verification_policy import STRICT, VerificationPolicy
from dstack.errors import InputError, QuoteMalformedError, QuoteUntrustedError
from dstack.keys.pem import spki_der


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """A quote whose signer is known. Made by `verify_quote` alone.

    Attributes:
        quote: The parsed quote.
        tcb_status: The worst of platform, TDX module and quoting enclave; the policy accepted it.
        advisory_ids: Intel's advisories that apply.
        ppid: 16 bytes that name the platform.
        fmspc: 6 bytes that name its model.
        root: The configured root that ends its chains; `root.simulated` must be said wherever this is reported.
        evaluation_number: The lower of both documents' TCB evaluation data numbers.
        root_crl_number: Number of the root's CRL.
        pck_crl_number: Number of the PCK CA's CRL.
        expires_at: When the first certificate, CRL or document used runs out: from then on it is refused.
    """

    quote: Quote
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...]
    ppid: bytes
    fmspc: bytes
    root: TrustedRoot
    evaluation_number: int
    root_crl_number: int
    pck_crl_number: int
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _Materials:
    """Everything a verification reads, parsed before the first step that trusts any of it."""

    quote: Quote
    pck: x509.Certificate
    authority: x509.Certificate
    root: x509.Certificate
    crl_authority: x509.Certificate
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    tcb_signer: x509.Certificate
    qe_signer: x509.Certificate
    tcb_info: TcbInfo
    qe_identity: QeIdentity


def verify_quote(
    raw: bytes,
    collateral: Collateral,
    *,
    roots: TrustedRoots,
    at: datetime,
    policy: VerificationPolicy = STRICT,
) -> VerifiedQuote:
    """Establish who signed a quote and on what platform.

    Says nothing of whether its measurements or report data are wanted: that is `appraise`.

    Args:
        raw: A DCAP quote of version 3 (SGX), 4 or 5 (TDX), exactly as received.
        collateral: Intel's statements about that platform, or a simulator's.
        roots: The only certificates allowed to end a chain.
        at: When everything must be valid. Never read from a clock in here.
        policy: What is accepted among genuine quotes.

    Returns:
        The quote, now in the type that `appraise` asks for.

    Raises:
        QuoteMalformedError: *raw* is not such a quote (steps 1 and 2).
        CollateralMalformedError: *collateral* or the PCK certificate's extension is not of its form.
        QuoteUntrustedError: A later step failed; its `.step` says which.
        InputError: *at* is not an aware time after 1970.
    """
    if at.tzinfo is None or at.timestamp() < 0:
        raise InputError(f"verification time: want an aware time after 1970, got {at}")

    # (1, 2) The quote is of its form.
    quote = parse_quote(raw)

    # (3) Its chain ends in a configured root.
    root, chain = _trusted_chain(quote, roots)
    materials = _materials(quote, chain, collateral)

    # (4) Both revocation lists are genuine and current.
    root_crl_number, pck_crl_number = _check_crls(materials, root, at, policy)

    # (5) TCB info and QE identity are genuine and current.
    _check_documents(materials, collateral, root, at)

    # (7) The PCK certificate is genuine and current.
    _check_chain(materials, root, at)

    # (8) It says which platform this is.
    platform = parse_pck_extension(materials.pck)

    # (6) The documents are about that platform.
    _check_subject(materials, platform, policy)

    # (9-12) The platform's quoting enclave signed the quote.
    check_quoting_enclave(quote, materials.pck, materials.qe_identity)

    # (14-16) The TD or enclave is of an acceptable kind.
    _check_body(quote.body, policy)

    # (13) The quote library agrees, and matches the TCB levels.
    status, advisory_ids = _ask_library(raw, collateral, root, at, platform)

    # (19) The policy accepts the outcome.
    if status not in policy.accepted_statuses:
        raise QuoteUntrustedError(19, f"TCB status {status.value}{_because(advisory_ids)} is not accepted")

    return VerifiedQuote(
        quote=quote,
        tcb_status=status,
        advisory_ids=advisory_ids,
        ppid=platform.ppid,
        fmspc=platform.fmspc,
        root=root,
        evaluation_number=min(materials.tcb_info.evaluation_number, materials.qe_identity.evaluation_number),
        root_crl_number=root_crl_number,
        pck_crl_number=pck_crl_number,
        expires_at=_first_expiry(materials),
    )


def _trusted_chain(quote: Quote, roots: TrustedRoots) -> tuple[TrustedRoot, tuple[x509.Certificate, ...]]:
    chain = parse_chain(quote.signature.pck_chain_pem, what="PCK chain", error=QuoteMalformedError)
    if len(chain) != 3:
        raise QuoteUntrustedError(3, f"PCK chain: want exactly 3 certificates, got {len(chain)}")
    root = roots.find(chain[2])
    if root is None or common_name(chain[2].subject) != root.names.root:
        raise QuoteUntrustedError(3, f"root {common_name(chain[2].subject)[:80]!r} is not a configured root of trust")
    require_issued(chain[2], chain[2], step=3)
    return root, chain


def _materials(quote: Quote, chain: tuple[x509.Certificate, ...], collateral: Collateral) -> _Materials:
    root = chain[2]
    return _Materials(
        quote=quote,
        pck=chain[0],
        authority=chain[1],
        root=root,
        crl_authority=_issuer(collateral.pck_crl_issuer_chain, root, step=4, what="PCK CRL issuer chain"),
        root_crl=parse_crl(collateral.root_ca_crl, what="root CRL"),
        pck_crl=parse_crl(collateral.pck_crl, what="PCK CRL"),
        tcb_signer=_issuer(collateral.tcb_info_issuer_chain, root, step=5, what="TCB info issuer chain"),
        qe_signer=_issuer(collateral.qe_identity_issuer_chain, root, step=5, what="QE identity issuer chain"),
        tcb_info=collateral.parsed_tcb_info(),
        qe_identity=collateral.parsed_qe_identity(),
    )


def _issuer(pem: str, root: x509.Certificate, *, step: int, what: str) -> x509.Certificate:
    """The first of exactly two certificates, the second of which is *root*."""
    chain = parse_chain(pem.encode(), what=what)
    if len(chain) != 2 or der_of(chain[1]) != der_of(root):
        raise QuoteUntrustedError(step, f"{what}: want exactly an issuer and the root of the quote's chain")
    return chain[0]


def _check_crls(m: _Materials, root: TrustedRoot, at: datetime, policy: VerificationPolicy) -> tuple[int, int]:
    require_authority(m.root, path_length=1, at=at, step=4)
    root_number = require_current_crl(m.root_crl, m.root, minimum=policy.min_root_crl_number, at=at, step=4)
    require_not_revoked(m.root, m.root_crl, step=3)
    if m.crl_authority.subject != m.pck.issuer or spki_der(m.crl_authority) != spki_der(m.authority):
        raise QuoteUntrustedError(4, "PCK CRL issuer chain: want the CA that issued the PCK certificate")
    _check_pck_authority(m.crl_authority, m, root, at, step=4)
    pck_number = require_current_crl(m.pck_crl, m.crl_authority, minimum=policy.min_pck_crl_number, at=at, step=4)
    return root_number, pck_number


def _check_documents(m: _Materials, collateral: Collateral, root: TrustedRoot, at: datetime) -> None:
    for name, signer, text, signature, document in (
        ("TCB info", m.tcb_signer, collateral.tcb_info, collateral.tcb_info_signature, m.tcb_info),
        ("QE identity", m.qe_signer, collateral.qe_identity, collateral.qe_identity_signature, m.qe_identity),
    ):
        _require_role(signer, (root.names.tcb_signer,), step=5)
        require_end_entity(signer, at=at, step=5)
        require_issued(signer, m.root, step=5)
        require_not_revoked(signer, m.root_crl, step=5)
        require_signature(p256_key(signer, step=5), signature, text.encode(), step=5, what=name)
        if not document.issue_date <= at < document.next_update:
            raise QuoteUntrustedError(5, f"{name}: good {document.issue_date} to {document.next_update}, not at {at}")


def _check_subject(m: _Materials, platform: PckExtension, policy: VerificationPolicy) -> None:
    tdx = m.quote.tee_type == TEE_TDX
    info, identity = m.tcb_info, m.qe_identity
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
    lowest = min(info.evaluation_number, identity.evaluation_number)
    if lowest < policy.min_evaluation_number:
        raise QuoteUntrustedError(
            6, f"TCB evaluation: want number {policy.min_evaluation_number} or more, got {lowest}"
        )


def _check_chain(m: _Materials, root: TrustedRoot, at: datetime) -> None:
    _check_pck_authority(m.authority, m, root, at, step=7)
    _require_role(m.pck, (root.names.pck,), step=7)
    require_end_entity(m.pck, at=at, step=7)
    require_issued(m.pck, m.authority, step=7)
    require_not_revoked(m.pck, m.pck_crl, step=7)
    keys = {spki_der(certificate) for certificate in (m.root, m.authority, m.pck, m.tcb_signer)}
    if len(keys) != 4:
        raise QuoteUntrustedError(7, "chains: want one key per role, got a key in two roles")


def _check_pck_authority(
    authority: x509.Certificate, m: _Materials, root: TrustedRoot, at: datetime, *, step: int
) -> None:
    _require_role(authority, root.names.pck_authorities, step=step)
    require_authority(authority, path_length=0, at=at, step=step)
    require_issued(authority, m.root, step=step)
    require_not_revoked(authority, m.root_crl, step=step)


def _require_role(certificate: x509.Certificate, names: tuple[str, ...], *, step: int) -> None:
    name = common_name(certificate.subject)
    if name not in names:
        raise QuoteUntrustedError(step, f"certificate: want the role {' or '.join(names)}, got {name[:80]!r}")


def _check_body(body: TdReport | EnclaveReport, policy: VerificationPolicy) -> None:
    if isinstance(body, EnclaveReport):
        check_enclave(body, policy)
    else:
        check_attributes(body, policy)
        check_module(body, policy)


def _ask_library(
    raw: bytes, collateral: Collateral, root: TrustedRoot, at: datetime, platform: PckExtension
) -> tuple[TcbStatus, tuple[str, ...]]:
    """Step 13. The library tells failures apart by prose only, which is passed on and never decided upon."""
    try:
        statements = dcap_qvl.QuoteCollateralV3.from_json(serialise_collateral(collateral))
        answer = dcap_qvl.verify_with_root_ca(raw, statements, root.certificate_der, int(at.timestamp()))
        status, advisory_ids = TcbStatus(answer.status), tuple(answer.advisory_ids)
    except (ValueError, TypeError, OverflowError) as exc:
        raise QuoteUntrustedError(13, f"quote library: {' '.join(str(exc).split())[:300]}") from exc
    if answer.ppid != platform.ppid:
        raise QuoteUntrustedError(13, "quote library: it names another platform")
    return status, advisory_ids


def _first_expiry(m: _Materials) -> datetime:
    certificates = (m.pck, m.authority, m.root, m.crl_authority, m.tcb_signer, m.qe_signer)
    crl_ends = [crl.next_update_utc for crl in (m.root_crl, m.pck_crl) if crl.next_update_utc is not None]
    documents = [m.tcb_info.next_update, m.qe_identity.next_update]
    return min([certificate.not_valid_after_utc for certificate in certificates] + crl_ends + documents)


def _because(advisory_ids: tuple[str, ...]) -> str:
    return f" ({', '.join(advisory_ids[:8])})" if advisory_ids else ""
