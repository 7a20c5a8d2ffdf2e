"""The complete checklist of evidence: items 1 to 20, every outcome, and one verdict.

`verify_quote` and `appraise` raise at the first thing that is wrong; this says what came of each, for people. Nothing
here makes a type that anything else trusts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from dstack.attestation.appraise import require_equal, sized_payload, system_payloads
from dstack.attestation.checklist import Check, Ledger, Outcome
from dstack.attestation.collateral import Collateral
from dstack.attestation.envelope import Envelope
from dstack.attestation.quote import TdReport
from dstack.attestation.reference import Reference, quoted_registers
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import QuoteChecks, check_quote
from dstack.errors import AppraisalError, InputError
from dstack.measurement.document import reference_values
from dstack.measurement.event_log import RuntimeEvent, replay_event_log, runtime_events
from dstack.measurement.mr_config_id import NO_MR_CONFIG_ID, mr_config_id_v1
from dstack.measurement.result import REGISTERS, Verdict
from dstack.measurement.rtmr3 import predict_rtmr3
from dstack.measurement.vm_config import parse_vm_config
from dstack.values import AppId, ComposeHash, InstanceId, Register, ReportData

_OWNERS = ("mr_owner", "mr_owner_config")
_ACPI_CLAIMED = "equal, but its ACPI digests are the machine's own claim: nobody else has seen those tables"


@dataclass(frozen=True, slots=True)
class Expected:
    """What evidence is compared with, beside what it brings itself.

    Attributes:
        report_data: What the quote must be bound to; None asks for nothing.
        reference: What the registers must be; None takes the image that the evidence names, if it can be measured.
        quote_only: Ask only who signed the quote: log, image and binding are left aside.
    """

    report_data: ReportData | None = None
    reference: Reference | None = None
    quote_only: bool = False


@dataclass(frozen=True, slots=True)
class EvidenceChecks:
    """Every check, by item, and the verdict.

    Attributes:
        checks: All of items 1 to 20, each at least once.
        quote: What came of the quote.
        verdict: Mismatched if anything failed; not computable if something that was asked for could not be compared.
        not_computable: What that is.
    """

    checks: tuple[Check, ...]
    quote: QuoteChecks
    verdict: Verdict
    not_computable: tuple[str, ...]


def check_evidence(
    envelope: Envelope,
    collateral: Collateral,
    *,
    roots: TrustedRoots,
    at: datetime,
    policy: VerificationPolicy,
    expected: Expected,
) -> EvidenceChecks:
    """Run every check of verification and appraisal, and say what came of each.

    Raises:
        InputError: *at* is not an aware time after 1970.
    """
    quote = check_quote(envelope.evidence.quote, collateral, roots=roots, at=at, policy=policy)
    ledger = Ledger(strict=False)
    missing: tuple[str, ...] = ()
    body = quote.quote.body if quote.quote is not None else None
    if body is None or expected.quote_only:
        ledger.skip((17, 18), "only the quote was asked for" if body is not None else "the quote cannot be read")
    else:
        _check_binding(envelope, quote, expected, ledger)
        if isinstance(body, TdReport):
            missing = _check_measurements(envelope, body, expected, ledger)
        else:
            ledger.skip((18,), "an SGX enclave has no event log; its identity is item 16")
    _check_device(quote, ledger)
    checks = tuple(sorted((*quote.checks, *ledger.checks), key=lambda check: check.item))
    return EvidenceChecks(checks, quote, _verdict(checks, missing), missing)


def _verdict(checks: tuple[Check, ...], missing: tuple[str, ...]) -> Verdict:
    if any(check.outcome is Outcome.FAILED for check in checks):
        return Verdict.MISMATCHED
    return Verdict.NOT_COMPUTABLE if missing else Verdict.MATCHED


def _check_binding(envelope: Envelope, checks: QuoteChecks, expected: Expected, ledger: Ledger) -> None:
    """Item 17: against everything that says what the report data should be."""
    assert checks.quote is not None
    got = checks.quote.report_data
    for name, wanted in (
        ("report data, as the evidence says", envelope.stated),
        ("report data, bound to the certificate's key", envelope.bound_to),
        ("report data, as expected", expected.report_data),
    ):
        if wanted is not None:
            ledger.run(17, _report_data_check(got, wanted), seen=wanted.hex(), name=name)
    if not ledger.has(17):
        ledger.skip((17,), "nothing says what it should be")


def _report_data_check(got: ReportData, wanted: ReportData) -> Callable[[], bool]:
    def check() -> bool:
        if got != wanted:
            raise AppraisalError(f"want {wanted.hex()}, the quote has {got.hex()}")
        return True

    return check


def _check_measurements(envelope: Envelope, body: TdReport, expected: Expected, ledger: Ledger) -> tuple[str, ...]:
    """Item 18; returns what was asked for and could not be compared."""
    if envelope.has_log:
        _check_log(envelope, body, ledger)
    if not envelope.has_log and expected.reference is None:
        ledger.skip((18,), "a quote alone brings no log, and no reference was given")
        return ()
    reference = expected.reference or _own_reference(envelope, ledger)
    # Without a reference of the auditor's, the events are all that is said of RTMR3, and they were checked above.
    claimed = ("rtmr3",) if envelope.has_log and expected.reference is None else ()
    asked = (name for name in REGISTERS if name not in claimed)
    return tuple(name for name in asked if not _compare(name, body, reference, envelope, ledger))


def _check_log(envelope: Envelope, body: TdReport, ledger: Ledger) -> None:
    """The runtime events fold into RTMR3; so does the whole log, where it was not stripped."""
    evidence, quoted = envelope.evidence, quoted_registers(body)
    events = len(evidence.runtime_events)

    def fold() -> Register:
        rtmr3 = predict_rtmr3(evidence.runtime_events)
        require_equal("RTMR3", wanted=rtmr3, got=body.rtmr3)
        return rtmr3

    ledger.run(18, fold, seen=f"{events} runtime events fold into it", name="RTMR3 by its events")
    ledger.run(18, lambda: _identities(evidence.runtime_events), seen=str, name="what the events name")
    logged = runtime_events(evidence.event_log)
    if logged:
        ledger.run(18, lambda: _require_same(logged, evidence.runtime_events), seen="the same in both", name="logs")
    if all(event.imr == 3 or not event.digest for event in evidence.event_log):
        ledger.skip((18,), "the log holds runtime events only", name="RTMR0 to RTMR2 by the log")
        return
    replayed = replay_event_log(evidence.event_log)
    stripped = not any(event.imr in (1, 2) for event in evidence.event_log)
    if stripped:
        ledger.skip((18,), "the log was stripped of boot events", name="RTMR0 to RTMR2 by the log")
        return
    for imr in range(3):
        name = f"rtmr{imr}"
        check = _register_check(name.upper(), replayed[imr], quoted[name])
        ledger.run(
            18, check, seen="the log folds into it, which says nothing of the image", name=f"{name.upper()} by the log"
        )


def _identities(events: tuple[RuntimeEvent, ...]) -> str:
    """App, compose file and instance in words; no event may hide one of them."""
    system = system_payloads(events)
    found = {
        "app-id": sized_payload(system, "app-id", AppId),
        "compose-hash": sized_payload(system, "compose-hash", ComposeHash),
        "instance-id": sized_payload(system, "instance-id", InstanceId) if system.get("instance-id") else None,
    }
    return ", ".join(f"{name} {value.hex() if value else 'none'}" for name, value in found.items())


def _require_same(logged: tuple[RuntimeEvent, ...], replayed: tuple[RuntimeEvent, ...]) -> bool:
    """The event log and the list that RTMR3 is replayed from tell the same: people read either."""
    if logged != replayed:
        raise AppraisalError(f"event log: its {len(logged)} runtime events are not the {len(replayed)} of the evidence")
    return True


def _own_reference(envelope: Envelope, ledger: Ledger) -> Reference:
    """What the image that the evidence names should measure, if it brings its measurement document."""
    evidence = envelope.evidence
    if not evidence.config:
        why = "no reference was given, and the evidence names no image"
        return Reference({}, dict.fromkeys(REGISTERS, why), False, "evidence")
    try:
        config = parse_vm_config(evidence.config)
        values = reference_values(config, evidence.event_log)
    except InputError as exc:
        why = f"no reference was given, and the evidence's image cannot be measured: {exc}"
        return Reference({}, dict.fromkeys(REGISTERS, why), False, "evidence")
    ledger.passed(18, f"{values.os_image_hash.hex()}, by the measurement document it lists", name="OS image hash")
    registers = {"mrtd": values.mrtd, "rtmr0": values.rtmr0, "rtmr1": values.rtmr1, "rtmr2": values.rtmr2}
    return Reference(registers, {}, values.acpi_source.verified, "image that the evidence names")


def _compare(name: str, body: TdReport, reference: Reference, envelope: Envelope, ledger: Ledger) -> bool:
    """Compare one register; False if it was asked for and there is nothing to compare it with."""
    got, wanted = quoted_registers(body)[name], reference.registers.get(name)
    label, origin = name.upper().replace("_", ""), reference.origin
    if wanted is None and name in (*_OWNERS, "mr_config_id"):
        wanted, origin = _host_register(name, got, envelope)
    if wanted is None:
        ledger.skip((18,), f"not computable: {reference.missing.get(name, 'not in the reference')}", name=label)
        return False
    equal = ledger.run(18, _register_check(label, wanted, got), seen=f"equal to the {origin}", name=label)
    if equal and name == "rtmr0" and not reference.acpi_tables_verified:
        ledger.skip((18,), f"not computable: {_ACPI_CLAIMED}", name="RTMR0: ACPI tables")
        return False
    return True


def _host_register(name: str, got: Register, envelope: Envelope) -> tuple[Register | None, str]:
    """What a register that the host may set should be: unused, or for MRCONFIGID the compose hash of the events."""
    if name != "mr_config_id" or not any(got):
        return NO_MR_CONFIG_ID, "unused value, zero"
    if got[0] != 1:
        return None, ""
    try:
        compose_hash = compose_hash_of(envelope)
    except AppraisalError:
        return None, ""
    return (None if compose_hash is None else mr_config_id_v1(compose_hash)), "compose hash of the events"


def _register_check(name: str, wanted: Register, got: Register) -> Callable[[], bool]:
    def check() -> bool:
        require_equal(name, wanted=wanted, got=got)
        return True

    return check


def _check_device(checks: QuoteChecks, ledger: Ledger) -> None:
    """Item 20: only a verified certificate names a machine."""
    if checks.verified is None:
        ledger.skip((20,), "the quote is not verified, so its PPID is a claim")
    else:
        ledger.passed(20, checks.verified.device_id.hex())


def compose_hash_of(envelope: Envelope) -> ComposeHash | None:
    """The compose hash that the events claim, for people; None without such an event.

    Raises:
        AppraisalError: The event has another size, or one before `system-ready` has a colon in its name.
    """
    return sized_payload(system_payloads(envelope.evidence.runtime_events), "compose-hash", ComposeHash)
