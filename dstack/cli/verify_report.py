"""The outcome of `dstack verify`: as facts for programs, and as a table for people."""

from __future__ import annotations

from collections.abc import Iterator

from dstack.attestation.checklist import TITLES, Check, Outcome
from dstack.attestation.distance import Distance
from dstack.attestation.envelope import Envelope
from dstack.attestation.evidence_checks import EvidenceChecks
from dstack.attestation.quote import EnclaveReport, TdReport
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.tcb import Rating
from dstack.attestation.verify import VerifiedQuote
from dstack.cli.printable import printable
from dstack.measurement.result import Verdict

SIMULATED = "SIMULATED: no Intel CPU stands behind this quote. Its root was trusted because --root says so."
_TD_FIELDS = ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "mr_owner", "mr_owner_config", "mr_seam")


def facts(outcome: EvidenceChecks, envelope: Envelope, roots: TrustedRoots) -> dict[str, object]:
    """Everything, as values that JSON can carry."""
    quote = outcome.quote
    return {
        "verdict": outcome.verdict.value,
        "verified": quote.verified is not None,
        "simulated": any(root.simulated for root in roots.roots),
        "trusted_roots": [root.fingerprint for root in roots.roots],
        "evidence": envelope.form.value,
        "tcb_status": quote.status.value if quote.status else None,
        **(_verified_facts(quote.verified) if quote.verified else {}),
        "quote": _body_facts(quote.quote.body) if quote.quote else None,
        "not_computable": list(outcome.not_computable),
        "not_compared": _not_compared(outcome),
        "checks": [_check_facts(check) for check in outcome.checks],
        "distance": [_distance_facts(distance) for distance in quote.distances],
    }


def lines(outcome: EvidenceChecks, envelope: Envelope, roots: TrustedRoots) -> Iterator[str]:
    """The same as a table, one line after the other; the last is the verdict."""
    if any(root.simulated for root in roots.roots):
        yield SIMULATED
    yield f"evidence: {envelope.form.value}"
    for check in outcome.checks:
        yield printable(f"{check.item:2}  {check.outcome.value:8} {check.name:42} {check.detail}")
    for distance in outcome.quote.distances:
        yield from map(printable, _distance_lines(distance))
    if outcome.quote.verified is not None:
        for name, value in _verified_facts(outcome.quote.verified).items():
            yield printable(f"{name.replace('_', ' '):32} {_words(value)}")
    if outcome.not_computable:
        yield f"not computable: {', '.join(outcome.not_computable)}"
    yield f"verdict: {outcome.verdict.value}{_left_aside(outcome)}"


def _left_aside(outcome: EvidenceChecks) -> str:
    skipped = _not_compared(outcome)
    left_aside = outcome.verdict is Verdict.MATCHED and skipped
    return f" (who signed it; not compared: {', '.join(skipped)})" if left_aside else ""


def _not_compared(outcome: EvidenceChecks) -> list[str]:
    """What the verdict says nothing of, because nothing was there to compare with."""
    return [
        what
        for item, what in ((17, "report data"), (18, "measurements"))
        if all(check.outcome is Outcome.SKIPPED for check in outcome.checks if check.item == item)
    ]


def _verified_facts(verified: VerifiedQuote) -> dict[str, object]:
    return {
        "advisory_ids": list(verified.advisory_ids),
        "device_id": verified.device_id.hex(),
        "ppid": verified.ppid.hex(),
        "fmspc": verified.fmspc.hex(),
        "root": verified.root.names.root,
        "root_fingerprint": verified.root.fingerprint,
        "tcb_info_evaluation_number": verified.tcb_info_evaluation_number,
        "qe_identity_evaluation_number": verified.qe_identity_evaluation_number,
        "root_crl_number": verified.root_crl_number,
        "pck_crl_number": verified.pck_crl_number,
        "expires_at": verified.expires_at.isoformat(),
        "expires_first": verified.expires_first,
    }


def _body_facts(body: TdReport | EnclaveReport) -> dict[str, object]:
    names = ("mr_enclave", "mr_signer") if isinstance(body, EnclaveReport) else _TD_FIELDS
    return {**{name: getattr(body, name).hex() for name in names}, "report_data": body.report_data.hex()}


def _check_facts(check: Check) -> dict[str, object]:
    return {
        "item": check.item,
        "title": TITLES[check.item],
        "name": check.name,
        "outcome": check.outcome.value,
        "detail": check.detail,
    }


def _distance_facts(distance: Distance) -> dict[str, object]:
    return {
        "part": distance.part.value,
        "reached": _rating_facts(distance.reached),
        "wanted": _rating_facts(distance.wanted),
        "gaps": [{"component": gap.component, "have": gap.have, "want": gap.want} for gap in distance.gaps],
        "settled_advisory_ids": list(distance.settled_advisory_ids),
    }


def _rating_facts(rating: Rating | None) -> dict[str, object] | None:
    if rating is None:
        return None
    date = rating.date.date().isoformat()
    return {"status": rating.status.value, "date": date, "advisory_ids": list(rating.advisory_ids)}


def _distance_lines(distance: Distance) -> Iterator[str]:
    """Nothing for a part that could not be better."""
    if distance.is_best:
        return
    reached = "reaches no TCB level" if distance.reached is None else _level(distance.reached)
    wanted = "there is no level" if distance.wanted is None else f"the next better is {_level(distance.wanted)}"
    yield f"distance: {distance.part.value}: {reached}; {wanted}"
    for gap in distance.gaps:
        yield f"distance:   {gap.component}: has {gap.have}, wants {gap.want}, {gap.want - gap.have} too low"
    if not distance.gaps and distance.wanted is not None:
        yield "distance:   no SVN is too low for it: a setting of the machine is what is objected to"
    if distance.settled_advisory_ids:
        yield f"distance:   that settles {', '.join(distance.settled_advisory_ids)}"


def _level(rating: Rating) -> str:
    advisories = f" ({', '.join(rating.advisory_ids)})" if rating.advisory_ids else ""
    return f"{rating.status.value} of {rating.date.date().isoformat()}{advisories}"


def _words(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)
