"""Is it wanted: a verified quote's registers against what they should be. Steps 17, 18 and 20."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import TdReport, parse_quote
from dstack.attestation.verify import VerifiedQuote
from dstack.errors import AppraisalError, ImageRefusedError
from dstack.measurement import identities, mr_config_id
from dstack.measurement.acpi import AcpiDigests, AcpiSource
from dstack.measurement.document import reference_values
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.machine import BootDigests
from dstack.measurement.rtmr3 import BOOT_MR_DONE, SYSTEM_READY, predict_rtmr3, split_at_boot_mr_done
from dstack.measurement.vm_config import VmConfig, parse_vm_config
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash, Register, ReportData

_T = TypeVar("_T", AppId, ComposeHash, InstanceId)


@dataclass(frozen=True, slots=True)
class Appraisal:
    """What a genuine machine was started with. Made by `appraise` alone.

    Attributes:
        verified: The quote it rests on.
        app_id: From the `app-id` event; None if there is none.
        compose_hash: From the `compose-hash` event; None if there is none.
        instance_id: From the `instance-id` event; None if it is empty or absent.
        key_provider_info: Payload of the `key-provider` event; empty if there is none.
        os_image_hash: Of the image whose reference values equal the registers.
        acpi_source: Who says which ACPI tables its host gave it.
        mr_system: `mrSystem` of the contracts.
        mr_aggregated: `mrAggregated` of the contracts, over the whole replay.
        device_id: Names the machine.
        rtmr3_boot: RTMR3 as it stood at `boot-mr-done`; None if that was not reached.
        runtime_events: Everything in RTMR3, also what the app added.
    """

    verified: VerifiedQuote
    app_id: AppId | None
    compose_hash: ComposeHash | None
    instance_id: InstanceId | None
    key_provider_info: bytes
    os_image_hash: OsImageHash
    acpi_source: AcpiSource
    mr_system: Digest32
    mr_aggregated: Digest32
    device_id: DeviceId
    rtmr3_boot: Register | None
    runtime_events: tuple[RuntimeEvent, ...]

    @property
    def acpi_tables_verified(self) -> bool:
        """Whether the content of its ACPI tables was seen, rather than their digests taken from its own log."""
        return self.acpi_source.verified


def appraise(
    evidence: Evidence,
    verified: VerifiedQuote,
    *,
    expected_report_data: ReportData | None,
    vm_config: str = "",
    image: Callable[[VmConfig], BootDigests] | None = None,
    acpi: Callable[[VmConfig], AcpiDigests] | None = None,
) -> Appraisal:
    """Compare a verified quote with what its log, image and binding say it should be.

    Says nothing of whether that app and image may exist: that is for the chain.

    Args:
        evidence: Whose quote was verified.
        verified: The result of `verify_quote` for that quote.
        expected_report_data: What the quote must be bound to. None only where the caller needs no binding.
        vm_config: Replaces the config in *evidence* unless empty.
        image: Measures the files of the image that a config of legacy mode names; None where nobody has them.
        acpi: Says which ACPI tables a machine of this shape has; None for its own log, which verifies nothing of them.

    Raises:
        ImageRefusedError: MRTD or RTMR0 to RTMR2 differ.
        AppraisalError: Something else differs; the message names it, what was wanted and what came.
        MeasurementMalformedError: The VM config, or the image's documents in it, cannot be used.
        QuoteMalformedError: The quote in *evidence* is not of its form.
    """
    report = _td_report(evidence, verified)

    # (17) The quote is bound to what the caller expects.
    check_report_data(report, evidence, expected_report_data)

    # (18) RTMR3 is what the runtime events fold into, and the other registers are those of a known image.
    rtmr3 = predict_rtmr3(evidence.runtime_events)
    require_equal("RTMR3", wanted=rtmr3, got=report.rtmr3)
    config = parse_vm_config(vm_config or evidence.config)
    reference = reference_values(config, evidence.event_log, image=image, acpi=acpi)
    try:
        require_equal("MRTD", wanted=reference.mrtd, got=report.mr_td)
        require_equal("RTMR0", wanted=reference.rtmr0, got=report.rtmr0)
        require_equal("RTMR1", wanted=reference.rtmr1, got=report.rtmr1)
        require_equal("RTMR2", wanted=reference.rtmr2, got=report.rtmr2)
    except AppraisalError as exc:
        raise ImageRefusedError(str(exc)) from exc
    system = system_payloads(evidence.runtime_events)
    compose_hash = sized_payload(system, "compose-hash", ComposeHash)
    check_host_registers(report, compose_hash)

    key_provider = system.get("key-provider")
    return Appraisal(
        verified=verified,
        app_id=sized_payload(system, "app-id", AppId),
        compose_hash=compose_hash,
        instance_id=sized_payload(system, "instance-id", InstanceId) if system.get("instance-id") else None,
        key_provider_info=key_provider or b"",
        os_image_hash=reference.os_image_hash,
        acpi_source=reference.acpi_source,
        mr_system=_mr_system(report, key_provider),
        mr_aggregated=_mr_aggregated(report, rtmr3),
        # (20) The device is named by the PPID of its verified certificate.
        device_id=verified.device_id,
        rtmr3_boot=_rtmr3_at_boot(evidence.runtime_events),
        runtime_events=evidence.runtime_events,
    )


def _td_report(evidence: Evidence, verified: VerifiedQuote) -> TdReport:
    if parse_quote(evidence.quote) != verified.quote:
        raise AppraisalError("evidence: its quote is not the one that was verified")
    body = verified.quote.body
    if not isinstance(body, TdReport):
        raise AppraisalError("evidence: want the quote of a TD, got that of an SGX enclave")
    return body


def check_report_data(report: TdReport, evidence: Evidence, expected: ReportData | None) -> None:
    """Step 17: the quote carries what the evidence says, and what the caller expects.

    Raises:
        AppraisalError: It carries something else.
    """
    for wanted, whose in ((evidence.report_data, "the evidence says"), (expected, "is expected")):
        if wanted is not None and not hmac.compare_digest(report.report_data, wanted):
            raise AppraisalError(f"report data: {wanted.hex()} {whose}, the quote has {report.report_data.hex()}")


def require_equal(name: str, *, wanted: Register, got: Register) -> None:
    """Step 18: one register is what it should be.

    Raises:
        AppraisalError: It is another; the error names the register and both values.
    """
    if not hmac.compare_digest(wanted, got):
        raise AppraisalError(f"{name}: want {wanted.hex()}, the quote has {got.hex()}")


def system_payloads(events: Iterable[RuntimeEvent]) -> Mapping[str, bytes]:
    """Payload by name, up to `system-ready`: what comes later is the app's word. The first of a name counts.

    A version 1 digest does not fix where the name ends and the payload begins: with a colon in its payload, an event
    could be shown under a longer name, and so be hidden. No system event has a colon in its name.

    Raises:
        AppraisalError: An event before `system-ready` has.
    """
    payloads: dict[str, bytes] = {}
    for event in events:
        if event.name == SYSTEM_READY:
            break
        if ":" in event.name:
            raise AppraisalError("event log: want no colon in the name of an event before system-ready, got one")
        payloads.setdefault(event.name, event.payload)
    return payloads


def sized_payload(payloads: Mapping[str, bytes], name: str, kind: type[_T]) -> _T | None:
    """An identity from its event, of exactly its size; None without the event.

    Raises:
        AppraisalError: The payload has another size.
    """
    if name not in payloads:
        return None
    if len(payloads[name]) != kind.SIZE:
        raise AppraisalError(f"event {name}: want {kind.SIZE} bytes, got {len(payloads[name])}")
    return kind(payloads[name])


def check_host_registers(report: TdReport, compose_hash: ComposeHash | None) -> None:
    """MRCONFIGID is unused (zero) or pins the compose hash (V1); MROWNER and MROWNERCONFIG are unused.

    Raises:
        AppraisalError: One holds something else.
    """
    if any(report.mr_owner) or any(report.mr_owner_config):
        raise AppraisalError("MROWNER, MROWNERCONFIG: want zero")
    if not any(report.mr_config_id):
        return
    if report.mr_config_id[0] != 1 or compose_hash is None:
        raise AppraisalError(f"MRCONFIGID: want zero or version 1, the quote has {report.mr_config_id.hex()}")
    require_equal("MRCONFIGID", wanted=mr_config_id.mr_config_id_v1(compose_hash), got=report.mr_config_id)


def _mr_system(report: TdReport, key_provider: bytes | None) -> Digest32:
    key_provider_digest = identities.mr_key_provider(key_provider)
    return identities.mr_system(report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, key_provider_digest)


def _mr_aggregated(report: TdReport, rtmr3: Register) -> Digest32:
    return identities.mr_aggregated(
        report.mr_td,
        report.rtmr0,
        report.rtmr1,
        report.rtmr2,
        rtmr3,
        mr_config_id=report.mr_config_id,
        mr_owner=report.mr_owner,
        mr_owner_config=report.mr_owner_config,
    )


def _rtmr3_at_boot(events: tuple[RuntimeEvent, ...]) -> Register | None:
    if all(event.name != BOOT_MR_DONE for event in events):
        return None
    return predict_rtmr3(split_at_boot_mr_done(events)[0])
