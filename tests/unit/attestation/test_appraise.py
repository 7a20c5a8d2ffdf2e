"""Appraisal: a genuine quote against its log, its image and its binding. Steps 17, 18 and 20."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dstack.attestation.appraise import Appraisal, appraise
from dstack.attestation.collateral import parse_collateral
from dstack.attestation.evidence import Evidence, strip_evidence
from dstack.attestation.quote import parse_quote
from dstack.attestation.roots import INTEL_ROOTS
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import AcceptStatus, VerificationPolicy
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import AppraisalError, EventLogMalformedError, MeasurementMalformedError
from dstack.measurement import identities
from dstack.measurement.acpi import AcpiSource
from dstack.measurement.event_log import RuntimeEvent, logged, replay_event_log
from dstack.measurement.mr_config_id import mr_config_id_v1
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.os_image import GIB, make_image
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import AppId, ComposeHash, InstanceId, Register, ReportData

REPORT_DATA = ReportData(bytes(range(64)))
IMAGE = make_image("appraisal tests")
CONFIG = IMAGE.vm_config()
INPUTS = BootInputs(
    app_id=AppId(b"\xaa" * 20),
    compose_hash=ComposeHash(b"\xcc" * 32),
    instance_id=InstanceId(b"\x11" * 20),
    key_provider="kms",
    key_provider_id=b"a public key",
    os_image_hash=IMAGE.os_image_hash,
    storage_fs="ext4",
)
EVENTS = boot_events(OUR_SEQUENCE, INPUTS)


@pytest.fixture(scope="module")
def machine(pki, roots, at):
    """Build the evidence of a simulated machine, and verify its quote."""

    def build(
        events: tuple[RuntimeEvent, ...] = EVENTS, config=CONFIG, **changes: Register
    ) -> tuple[Evidence, VerifiedQuote]:
        log = IMAGE.boot_log(config)
        boot = replay_event_log(log)
        registers = TdRegisters(IMAGE.mr_td(config), boot[0], boot[1], boot[2], predict_rtmr3(events))
        quote = make_quote(pki, registers=replace(registers, **changes), report_data=REPORT_DATA)
        evidence = Evidence(quote, (*log, *map(logged, events)), events, REPORT_DATA, serialise_vm_config(config))
        return evidence, verify_quote(quote, pki.collateral(), roots=roots, at=at)

    return build


def refused(evidence: Evidence, verified: VerifiedQuote, message: str, **arguments: object) -> None:
    """Assert that appraisal refuses with *message*."""
    with pytest.raises(AppraisalError, match=message):
        appraise(evidence, verified, **{"expected_report_data": REPORT_DATA, **arguments})


def test_a_machine_in_order_is_appraised(machine, pki):
    """The appraisal says whole what the machine was started with, under the names the contracts use."""
    evidence, verified = machine()

    body = verified.quote.body
    key_provider = identities.key_provider_payload("kms", b"a public key")
    assert appraise(evidence, verified, expected_report_data=REPORT_DATA) == Appraisal(
        verified=verified,
        app_id=INPUTS.app_id,
        compose_hash=INPUTS.compose_hash,
        instance_id=INPUTS.instance_id,
        key_provider_info=key_provider,
        os_image_hash=IMAGE.os_image_hash,
        acpi_source=AcpiSource.FROM_LOG,
        mr_system=identities.mr_system(
            body.mr_td, body.rtmr0, body.rtmr1, body.rtmr2, identities.mr_key_provider(key_provider)
        ),
        mr_aggregated=identities.mr_aggregated(
            body.mr_td,
            body.rtmr0,
            body.rtmr1,
            body.rtmr2,
            body.rtmr3,
            mr_config_id=body.mr_config_id,
            mr_owner=body.mr_owner,
            mr_owner_config=body.mr_owner_config,
        ),
        device_id=identities.device_id(pki.platform.ppid),
        rtmr3_boot=predict_rtmr3(EVENTS[:5]),
        runtime_events=EVENTS,
    )


def test_stripped_evidence_is_appraised_alike(machine):
    """What a certificate carries is enough for the same appraisal."""
    evidence, verified = machine()

    assert appraise(strip_evidence(evidence), verified, expected_report_data=REPORT_DATA) == appraise(
        evidence, verified, expected_report_data=REPORT_DATA
    )


@pytest.mark.parametrize("memory_size", [2 * GIB, 4 * GIB])
def test_the_shape_of_the_vm_is_measured(machine, memory_size):
    """A machine of another size has other registers, and its own config appraises it."""
    config = IMAGE.vm_config(memory_size=memory_size, cpu_count=3)
    evidence, verified = machine(config=config)

    assert appraise(evidence, verified, expected_report_data=None).os_image_hash == IMAGE.os_image_hash


def test_a_config_from_outside_wins(machine):
    """The config argument replaces the one in the evidence; a sys-config holding one is taken too."""
    evidence, verified = machine()
    bare = replace(evidence, config="")

    for config in (evidence.config, json.dumps({"vm_config": evidence.config})):
        appraisal = appraise(bare, verified, expected_report_data=REPORT_DATA, vm_config=config)
        assert appraisal == appraise(evidence, verified, expected_report_data=REPORT_DATA)
    with pytest.raises(MeasurementMalformedError, match=r"vm_config"):
        appraise(bare, verified, expected_report_data=REPORT_DATA)


def test_evidence_with_another_quote_is_refused(machine):
    """Evidence whose quote is not the verified one is refused."""
    evidence, _ = machine()
    _, verified = machine(events=EVENTS[:-1])
    refused(evidence, verified, "its quote is not the one that was verified")


def test_an_enclaves_quote_is_not_appraised(quotes):
    """The quote of an SGX enclave, verified as it may be, is no machine's."""
    folder = quotes / "intel-sgx-v3-hardening"
    raw = (folder / "quote.bin").read_bytes()
    quote = parse_quote(raw)
    verified = verify_quote(
        raw,
        parse_collateral((folder / "collateral.json").read_bytes()),
        roots=INTEL_ROOTS,
        at=datetime(2025, 7, 4, 10, 28, 44, tzinfo=UTC),
        policy=VerificationPolicy(
            relaxations=(
                AcceptStatus(TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED, datetime(2026, 1, 1, tzinfo=UTC)),
            ),
            mr_enclaves=frozenset({quote.body.mr_enclave}),
        ),
    )
    evidence = Evidence(raw, (), (), quote.report_data, "")
    refused(evidence, verified, "want the quote of a TD, got that of an SGX enclave")


def test_step_17_report_data(machine):
    """Report data other than expected, or than the evidence says, is refused; None asks for no binding."""
    evidence, verified = machine()
    other = ReportData(bytes(64))

    assert appraise(evidence, verified, expected_report_data=None).verified == verified
    refused(evidence, verified, "report data: 0000.* is expected, the quote has 0001", expected_report_data=other)
    refused(replace(evidence, report_data=other), verified, "report data: 0000.* the evidence says")


def test_step_18_rtmr3_is_what_the_events_fold_into(machine):
    """An event dropped, added, changed or moved gives another RTMR3, and is refused."""
    evidence, verified = machine()
    changed = RuntimeEvent("app-id", b"\xab" * 20)
    for events in (
        EVENTS[:-1],
        (*EVENTS, RuntimeEvent("more", b"")),
        (EVENTS[0], changed, *EVENTS[2:]),
        (*EVENTS[:2], EVENTS[3], EVENTS[2], *EVENTS[4:]),
        (),
    ):
        refused(replace(evidence, runtime_events=events), verified, "RTMR3: want .*, the quote has ")


@pytest.mark.parametrize(
    ("field", "name"), [("mr_td", "MRTD"), ("rtmr0", "RTMR0"), ("rtmr1", "RTMR1"), ("rtmr2", "RTMR2")]
)
def test_step_18_the_first_differing_register_is_named(machine, field, name):
    """A register other than the image's is refused by name, with both values."""
    evidence, verified = machine(**{field: Register(b"\x99" * 48)})
    refused(evidence, verified, f"^{name}: want [0-9a-f]{{96}}, the quote has (99){{48}}$")


def test_step_18_an_image_that_does_not_hash_up_is_refused(machine):
    """A config that names another image than its documents describe is refused."""
    evidence, verified = machine()
    other = replace(CONFIG, os_image_hash=make_image("other").os_image_hash)
    with pytest.raises(MeasurementMalformedError, match=r"checksum file: its SHA-256 is not the os image hash"):
        appraise(evidence, verified, expected_report_data=None, vm_config=serialise_vm_config(other))


def test_step_18_a_log_without_acpi_events_is_refused(machine):
    """Without the three named ACPI events nothing can be compared, and that is an error."""
    evidence, verified = machine()
    with pytest.raises(EventLogMalformedError, match=r"ACPI events: want"):
        appraise(replace(evidence, event_log=()), verified, expected_report_data=REPORT_DATA)


def test_step_18_later_events_do_not_rename_the_app(machine):
    """Events of system names after `system-ready`, or repeated before it, change no identity."""
    later = (
        *EVENTS[:3],
        RuntimeEvent("app-id", b"\xab" * 20),
        *EVENTS[3:],
        RuntimeEvent("app-id", b"\xac" * 20),
        RuntimeEvent("compose-hash", b"\xdd" * 32),
        RuntimeEvent("my-event", b"anything"),
    )
    evidence, verified = machine(events=later)

    appraisal = appraise(evidence, verified, expected_report_data=REPORT_DATA)

    assert (appraisal.app_id, appraisal.compose_hash) == (INPUTS.app_id, INPUTS.compose_hash)
    assert appraisal.runtime_events == later


def test_step_18_an_event_only_after_system_ready_is_not_an_identity(machine):
    """An app-id that appears only after `system-ready` is the app's word, and counts for nothing."""
    evidence, verified = machine(events=(RuntimeEvent("system-ready", b""), RuntimeEvent("app-id", b"\xab" * 20)))

    appraisal = appraise(evidence, verified, expected_report_data=REPORT_DATA)

    assert appraisal.app_id is None
    assert appraisal.compose_hash is None
    assert appraisal.instance_id is None
    assert appraisal.key_provider_info == b""
    assert appraisal.rtmr3_boot is None


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("app-id", bytes(19), "event app-id: want 20 bytes, got 19"),
        ("app-id", b"", "event app-id: want 20 bytes, got 0"),
        ("compose-hash", bytes(33), "event compose-hash: want 32 bytes, got 33"),
        ("instance-id", bytes(32), "event instance-id: want 20 bytes, got 32"),
    ],
)
def test_step_18_identities_have_their_lengths(machine, name, payload, message):
    """An identity of another length is refused: cut or padded it would be another's."""
    evidence, verified = machine(events=(RuntimeEvent(name, payload),))
    refused(evidence, verified, message)


def test_step_18_an_empty_instance_id_is_none(machine):
    """An app without instance ids has an empty event, and no instance id."""
    evidence, verified = machine(events=boot_events(OUR_SEQUENCE, replace(INPUTS, instance_id=None)))

    assert appraise(evidence, verified, expected_report_data=REPORT_DATA).instance_id is None


def test_step_18_mrconfigid_pins_the_compose_hash(machine):
    """A version 1 MRCONFIGID of the measured compose hash is taken; of another, or of another version, refused."""
    pinned = mr_config_id_v1(INPUTS.compose_hash)

    evidence, verified = machine(mr_config_id=pinned)
    assert appraise(evidence, verified, expected_report_data=None).compose_hash == INPUTS.compose_hash

    refused(*machine(mr_config_id=mr_config_id_v1(ComposeHash(bytes(32)))), "MRCONFIGID: want 01cc.*has 0100")
    refused(*machine(mr_config_id=Register(b"\x02" + pinned[1:])), "MRCONFIGID: want zero or version 1")
    refused(*machine(mr_config_id=Register(pinned[:-1] + b"\x01")), "MRCONFIGID: want 01cc")
    refused(*machine(events=(), mr_config_id=pinned), "MRCONFIGID: want zero or version 1")


@pytest.mark.parametrize("field", ["mr_owner", "mr_owner_config"])
def test_step_18_owner_registers_are_unused(machine, field):
    """A nonzero MROWNER or MROWNERCONFIG is refused: nobody here says what it should be."""
    refused(*machine(**{field: Register(bytes(47) + b"\x01")}), "MROWNER, MROWNERCONFIG: want zero")


def test_golden_rtmr3(shared_vectors):
    """RTMR3, whole and as it stood at boot-mr-done, follows from the events of the golden evidence."""
    for case in json.loads((shared_vectors / "kms" / "attestation.json").read_text())["cases"]:
        events = tuple(
            RuntimeEvent(event["event"], bytes.fromhex(event["payload"])) for event in case["runtime_events"]
        )
        names = [event.name for event in events]

        assert predict_rtmr3(events).hex() == case["measurements"]["runtime"]["rtmr3"]
        boot = predict_rtmr3(events[: names.index("boot-mr-done") + 1])
        assert boot.hex() == case["measurements"]["boottime"]["rtmr3"]
