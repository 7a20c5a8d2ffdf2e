"""Who signed a quote: bytes to `VerifiedQuote`, by the numbered steps of `docs/verification-steps.md`.

Two verifiers must agree: the steps below, ours, and the quote library (dcap-qvl), which repeats them. Ours is stricter
wherever the library was seen to be lax (quote-verification.md section 3).

The same checks run in two ways. `verify_quote` raises at the first that fails and returns the type that everything
else asks for. `check_quote` writes down what came of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import dcap_qvl

from dstack.attestation.certificates import require_crl_number, require_signature
from dstack.attestation.checklist import Check, Ledger
from dstack.attestation.collateral import Collateral
from dstack.attestation.content_cache import ContentCache, Period
from dstack.attestation.distance import Distance, tcb_distances
from dstack.attestation.establish import Established, Question, establish
from dstack.attestation.pck import PckExtension
from dstack.attestation.quote import EnclaveReport, Quote, TdReport, check_header, parse_quote
from dstack.attestation.roots import TrustedRoot, TrustedRoots
from dstack.attestation.tcb import QeIdentity, TcbInfo, TcbStatus
from dstack.attestation.tcb_match import TcbMatch, match_tcb
from dstack.attestation.td import check_attributes, check_enclave, check_module
from dstack.attestation.verification_policy import STRICT, AcceptStatus, Relaxation, VerificationPolicy
from dstack.attestation.verify_collateral import VerifiedCollateral, require_time
from dstack.errors import QuoteUntrustedError
from dstack.measurement.identities import device_id
from dstack.values import DeviceId


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """A quote whose signer is known. Made by `verify_quote` and `check_quote` alone.

    Attributes:
        quote: The parsed quote.
        tcb_status: The worst of platform, TDX module and quoting enclave; the policy accepted it.
        advisory_ids: Intel's advisories that apply.
        ppid: 16 bytes that name the platform.
        fmspc: 6 bytes that name its model.
        root: The configured root that ends its chains; `root.simulated` must be said wherever this is reported.
        tcb_info_evaluation_number: TCB evaluation data number of the TCB info.
        qe_identity_evaluation_number: The same of the QE identity.
        root_crl_number: Number of the root's CRL.
        pck_crl_number: Number of the PCK CA's CRL.
        expires_at: When the first thing that this rests on ends: from then on the quote is refused.
        expires_first: What that is: a certificate, CRL, document, or relaxation of the policy.
    """

    quote: Quote
    tcb_status: TcbStatus
    advisory_ids: tuple[str, ...]
    ppid: bytes
    fmspc: bytes
    root: TrustedRoot
    tcb_info_evaluation_number: int
    qe_identity_evaluation_number: int
    root_crl_number: int
    pck_crl_number: int
    expires_at: datetime
    expires_first: str

    @property
    def device_id(self) -> DeviceId:
        """Names the machine: SHA-256 of the PPID."""
        return device_id(self.ppid)

    @property
    def evaluation_number(self) -> int:
        """The lower of both documents' TCB evaluation data numbers."""
        return min(self.tcb_info_evaluation_number, self.qe_identity_evaluation_number)


@dataclass(frozen=True, slots=True)
class QuoteChecks:
    """What came of every check of a quote.

    Attributes:
        checks: By item; items 17, 18 and 20 belong to `appraise`.
        quote: The parsed quote; None if it cannot be read.
        verified: What `verify_quote` would have returned; None if it would have raised.
        status: The TCB status, accepted or not; None if it could not be told.
        distances: How far each part is from a better level; empty if that could not be told.
    """

    checks: tuple[Check, ...]
    quote: Quote | None
    verified: VerifiedQuote | None
    status: TcbStatus | None
    distances: tuple[Distance, ...]


def verify_quote(
    raw: bytes,
    collateral: Collateral,
    *,
    roots: TrustedRoots,
    at: datetime,
    policy: VerificationPolicy = STRICT,
    cache: ContentCache | None = None,
) -> VerifiedQuote:
    """Establish who signed a quote and on what platform.

    Says nothing of whether its measurements or report data are wanted: that is `appraise`.

    Args:
        raw: A DCAP quote of version 3 (SGX), 4 or 5 (TDX), exactly as received.
        collateral: Intel's statements about that platform, or a simulator's.
        roots: The only certificates allowed to end a chain.
        at: When everything must be valid. Never read from a clock in here.
        policy: What is accepted among genuine quotes.
        cache: Remembers checks of unchanged collateral and platforms while they hold; none by default.

    Returns:
        The quote, now in the type that `appraise` asks for.

    Raises:
        QuoteMalformedError: *raw* is not such a quote (steps 1 and 2).
        CollateralMalformedError: *collateral* or the PCK certificate's extension is not of its form.
        QuoteUntrustedError: A later step failed; its `.step` says which.
        InputError: *at* is not an aware time after 1970.
    """
    require_time(at)
    question = Question(collateral, roots, at, policy, cache)
    quote = parse_quote(raw)
    ledger = Ledger(strict=True)
    established = establish(quote, question, ledger)
    assert established is not None, "a strict ledger raises"
    verified, _ = _judge(raw, quote, established, question, ledger)
    assert verified is not None, "a strict ledger raises"
    return verified


def check_quote(
    raw: bytes,
    collateral: Collateral,
    *,
    roots: TrustedRoots,
    at: datetime,
    policy: VerificationPolicy = STRICT,
) -> QuoteChecks:
    """Run every check of `verify_quote` and say what came of each, instead of raising at the first.

    A check whose input failed is skipped, and says so.

    Raises:
        InputError: *at* is not an aware time after 1970.
    """
    require_time(at)
    question, ledger = Question(collateral, roots, at, policy, cache=None), Ledger(strict=False)
    ledger.run(1, lambda: check_header(raw), seen=lambda version: f"version {version}, {len(raw)} bytes")
    if ledger.failed(1):
        ledger.skip(range(2, 17), "the quote cannot be read")
        return QuoteChecks(ledger.checks, None, None, None, ())
    quote = ledger.run(2, lambda: parse_quote(raw), seen="lengths nest, only zeros follow")
    if quote is None:
        ledger.skip(range(3, 17), "the quote cannot be read")
        return QuoteChecks(ledger.checks, None, None, None, ())
    established = establish(quote, question, ledger)
    if established is None:
        _check_body(quote, question, ledger)
        ledger.skip((item for item in (12, 13, 19) if not ledger.has(item)), "the platform is not established")
        return QuoteChecks(ledger.checks, quote, None, None, ())
    verified, match = _judge(raw, quote, established, question, ledger)
    distances = tcb_distances(*_rated(quote, established))
    return QuoteChecks(ledger.checks, quote, verified, match.status if match else None, distances)


def _judge(
    raw: bytes, quote: Quote, established: Established, question: Question, ledger: Ledger
) -> tuple[VerifiedQuote | None, TcbMatch | None]:
    """Items 12 to 19, and the numbers of 4 and 6 that the policy asks for."""
    collateral, policy = established.collateral.verified, question.policy
    ledger.run(4, lambda: _check_crl_numbers(collateral, policy), seen="not below the policy's", name="CRL numbers")
    ledger.run(6, lambda: _check_evaluation(collateral, policy), seen="not below the policy's", name="evaluation")
    # (12) The attestation key signed the quote.
    ledger.run(12, lambda: _check_body_signature(quote, established), seen="by the attestation key")
    # (14-16) The TD or enclave is of an acceptable kind.
    needed = _check_body(quote, question, ledger)
    # (13) The TCB levels, by both verifiers.
    match = ledger.run(13, lambda: _match(raw, quote, established, question), seen=_match_words)
    if match is None:
        ledger.skip((19,), "there is no TCB status to judge")
        return None, None
    # (19) The policy accepts the outcome.
    accepted = ledger.run(
        19, lambda: _check_status(match, policy, question.at), seen=lambda seen: _accepted_words(match, seen)
    )
    if accepted is None or needed is None or ledger.failed(*range(1, 21)):
        return None, match
    return _verified(quote, established, match, (*needed, *accepted)), match


def _check_crl_numbers(collateral: VerifiedCollateral, policy: VerificationPolicy) -> None:
    parts = collateral.parts
    require_crl_number(collateral.root_crl_number, policy.min_root_crl_number, parts.root_certificate, step=4)
    require_crl_number(collateral.pck_crl_number, policy.min_pck_crl_number, parts.authority, step=4)


def _check_evaluation(collateral: VerifiedCollateral, policy: VerificationPolicy) -> None:
    wanted, lowest = policy.min_evaluation_number, collateral.evaluation_number
    if lowest < wanted:
        raise QuoteUntrustedError(6, f"TCB evaluation: want number {wanted} or more, got {lowest}")


def _check_body_signature(quote: Quote, established: Established) -> None:
    key, signature = established.platform.attestation_key, quote.signature.body_signature
    require_signature(key, signature, quote.signed, step=12, what="quote")


def _check_body(quote: Quote, question: Question, ledger: Ledger) -> tuple[Relaxation, ...] | None:
    """Items 14 to 16; returns the relaxations that were needed."""
    body, policy, at = quote.body, question.policy, question.at
    if isinstance(body, EnclaveReport):
        ledger.skip((14, 15), "the quote is of an SGX enclave")
        return ledger.run(16, lambda: check_enclave(body, policy), seen=f"MRENCLAVE {body.mr_enclave.hex()}")
    ledger.skip((16,), "the quote is of a TD")
    attributes = ledger.run(
        14,
        lambda: check_attributes(body, policy, at),
        seen=f"0x{body.td_attributes[::-1].hex()}: no debug, no migration",
    )
    module = ledger.run(
        15,
        lambda: check_module(body, policy, at),
        seen=f"MRSEAM {body.mr_seam.hex()[:16]}..., version {body.tee_tcb_svn[1]}",
    )
    return None if attributes is None or module is None else (*attributes, *module)


def _match(raw: bytes, quote: Quote, established: Established, question: Question) -> TcbMatch:
    """Match levels ourselves, and have the library do so; the library tells failures apart by prose only."""
    root, at = established.parts.root, int(question.at.timestamp())
    try:
        answer = dcap_qvl.verify_with_root_ca(raw, established.collateral.library_form, root.certificate_der, at)
        status, advisory_ids, ppid = answer.status, answer.advisory_ids, answer.ppid
    except (ValueError, TypeError, OverflowError) as exc:
        raise QuoteUntrustedError(13, f"quote library: {' '.join(str(exc).split())[:300]}") from exc
    match = _own_match(quote, established, question)
    if ppid != established.platform.extension.ppid:
        raise QuoteUntrustedError(13, "quote library: it names another platform")
    if status != match.library_status.value or not match.advisory_ids_include(advisory_ids):
        theirs, ours = f"{status[:40]} {advisory_ids[:8]}", f"{match.library_status.value} {match.advisory_ids[:8]}"
        raise QuoteUntrustedError(13, f"quote library: it says {theirs}, our own matching {ours}")
    return match


def _own_match(quote: Quote, established: Established, question: Question) -> TcbMatch:
    """Done once for a platform and the SVNs that its TDs state."""
    body, cache = quote.body, question.cache
    if cache is None or isinstance(body, EnclaveReport):
        return match_tcb(*_rated(quote, established))
    key = b"".join(
        (established.key, body.tee_tcb_svn, body.tee_tcb_svn2 or b"", body.seam_attributes, body.mr_signer_seam)
    )
    found = cache.get(key, TcbMatch, question.at)
    if found is None:
        found = match_tcb(*_rated(quote, established))
        cache.put(key, found, established.platform.period)
    return found


def _rated(
    quote: Quote, established: Established
) -> tuple[TdReport | EnclaveReport, PckExtension, TcbInfo, EnclaveReport, QeIdentity]:
    """What has SVNs, and the documents that rate them."""
    parts = established.parts
    report = quote.signature.qe_report
    return quote.body, established.platform.extension, parts.tcb_info, report, parts.qe_identity


def _check_status(match: TcbMatch, policy: VerificationPolicy, at: datetime) -> tuple[Relaxation, ...]:
    refused = sorted(policy.refused_advisory_ids.intersection(match.advisory_ids))
    if refused:
        raise QuoteUntrustedError(19, f"advisory {refused[0]} is one that the policy refuses")
    if match.status is TcbStatus.UP_TO_DATE:
        return ()
    for relaxation in policy.applying(at):
        if isinstance(relaxation, AcceptStatus) and relaxation.status is match.status:
            allowed = relaxation.advisory_ids
            if allowed is None or allowed.issuperset(match.advisory_ids):
                return (relaxation,)
    raise QuoteUntrustedError(
        19, f"TCB status {match.status.value}{_because(match.advisory_ids)} is not accepted{_ended(match, policy, at)}"
    )


def _ended(match: TcbMatch, policy: VerificationPolicy, at: datetime) -> str:
    over = [
        relaxation.until
        for relaxation in policy.relaxations
        if isinstance(relaxation, AcceptStatus) and relaxation.status is match.status and relaxation.until <= at
    ]
    return f" since {max(over)}" if over else ""


def _verified(quote: Quote, established: Established, match: TcbMatch, needed: tuple[Relaxation, ...]) -> VerifiedQuote:
    collateral, platform = established.collateral.verified, established.platform
    period = platform.period
    for relaxation in needed:
        period = period.within(Period(period.start, relaxation.until, str(relaxation)))
    return VerifiedQuote(
        quote=quote,
        tcb_status=match.status,
        advisory_ids=match.advisory_ids,
        ppid=platform.extension.ppid,
        fmspc=platform.extension.fmspc,
        root=collateral.parts.root,
        tcb_info_evaluation_number=collateral.parts.tcb_info.evaluation_number,
        qe_identity_evaluation_number=collateral.parts.qe_identity.evaluation_number,
        root_crl_number=collateral.root_crl_number,
        pck_crl_number=collateral.pck_crl_number,
        expires_at=period.end,
        expires_first=period.ends,
    )


def _match_words(match: TcbMatch) -> str:
    return ", ".join(f"{each.part.value} {each.rating.status.value}" for each in match.parts)


def _accepted_words(match: TcbMatch, needed: tuple[Relaxation, ...]) -> str:
    ends = f", by a relaxation until {needed[0].until}" if needed else ""
    return f"{match.status.value}{_because(match.advisory_ids)}{ends}"


def _because(advisory_ids: tuple[str, ...]) -> str:
    return f" ({', '.join(advisory_ids[:8])})" if advisory_ids else ""
