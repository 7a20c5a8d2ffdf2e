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
    parse_chain,
    require_end_entity,
    require_issued,
    require_not_revoked,
)
from dstack.attestation.collateral import Collateral, serialise_collateral
from dstack.attestation.pck import PckExtension, parse_pck_extension
from dstack.attestation.qe import check_quoting_enclave
from dstack.attestation.quote import TEE_TDX, EnclaveReport, Quote, TdReport, parse_quote
from dstack.attestation.roots import TrustedRoot, TrustedRoots
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.td import check_attributes, check_enclave, check_module
from dstack.attestation.verification_policy import STRICT, VerificationPolicy
from dstack.attestation.verify_collateral import (
    CollateralParts,
    require_pck_authority,
    require_role,
    verify_collateral,
)
from dstack.errors import QuoteMalformedError, QuoteUntrustedError
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
    # (1, 2) The quote is of its form.
    quote = parse_quote(raw)

    # (3) Its chain ends in a configured root.
    root, chain = _trusted_chain(quote, roots)

    # (4, 5) The collateral is genuine and current, under the same root.
    statements = verify_collateral(
        collateral,
        roots=TrustedRoots((root,)),
        at=at,
        min_root_crl_number=policy.min_root_crl_number,
        min_pck_crl_number=policy.min_pck_crl_number,
    )
    pck, authority, _ = chain
    if statements.parts.authority.subject != pck.issuer or spki_der(statements.parts.authority) != spki_der(authority):
        raise QuoteUntrustedError(4, "PCK CRL issuer chain: want the CA that issued the PCK certificate")

    # (7) The PCK certificate is genuine and current.
    _check_chain(pck, authority, statements.parts, at)

    # (8) It says which platform this is.
    platform = parse_pck_extension(pck)

    # (6) The documents are about that platform.
    _check_subject(quote, statements.parts, platform, policy)

    # (9-12) The platform's quoting enclave signed the quote.
    check_quoting_enclave(quote, pck, statements.parts.qe_identity)

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
        evaluation_number=statements.evaluation_number,
        root_crl_number=statements.root_crl_number,
        pck_crl_number=statements.pck_crl_number,
        expires_at=min(statements.expires_at, *(certificate.not_valid_after_utc for certificate in (pck, authority))),
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


def _check_subject(quote: Quote, parts: CollateralParts, platform: PckExtension, policy: VerificationPolicy) -> None:
    tdx = quote.tee_type == TEE_TDX
    info, identity = parts.tcb_info, parts.qe_identity
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


def _check_chain(pck: x509.Certificate, authority: x509.Certificate, parts: CollateralParts, at: datetime) -> None:
    require_pck_authority(authority, parts, at=at, step=7)
    require_role(pck, (parts.root.names.pck,), step=7)
    require_end_entity(pck, at=at, step=7)
    require_issued(pck, authority, step=7)
    require_not_revoked(pck, parts.pck_crl, step=7)
    keys = {spki_der(certificate) for certificate in (parts.root_certificate, authority, pck, parts.tcb_signer)}
    if len(keys) != 4:
        raise QuoteUntrustedError(7, "chains: want one key per role, got a key in two roles")


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


def _because(advisory_ids: tuple[str, ...]) -> str:
    return f" ({', '.join(advisory_ids[:8])})" if advisory_ids else ""
