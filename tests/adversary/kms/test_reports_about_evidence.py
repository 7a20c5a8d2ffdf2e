"""Security reports about dstack's KMS (kms.md section 11) that concern evidence, each by its number.

The findings of the third-party audit that concern a KMS are here too, by their number there.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dstack.attestation.app_info import parse_app_info
from dstack.attestation.evidence import MAX_EVIDENCE, Evidence, parse_evidence, serialise_evidence
from dstack.attestation.quote import TdReport, parse_quote
from dstack.attestation.roots import INTEL_ROOTS
from dstack.attestation.scale import write_length
from dstack.errors import (
    AppraisalError,
    EvidenceMalformedError,
    KeyReleaseDeniedError,
    MeasurementMalformedError,
    QuoteUntrustedError,
)
from dstack.keys.certs import OID_APP_INFO, certificate_payload
from dstack.keys.pem import load_certificate
from dstack.measurement.event_log import replay_event_log
from dstack.measurement.identities import device_id
from dstack.measurement.image import os_image_hash
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.os_image import make_image
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.platform import Defects
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import ReportData
from kms.release import KeyRelease
from tests.unit.kms.conftest import AT, PKI, World, allow_kms, app_machine
from tests.unit.kms.test_release import certificate_of
from tests.unit.kms.test_release_of_certificates import KEYS, request

BOUND_TO = ReportData(b"bound to this" + bytes(51))


@pytest.fixture
def release(world: World) -> KeyRelease:
    """The release of a KMS that the chain permits."""
    allow_kms(world)
    return KeyRelease(KEYS.roots, world.own, world.verifier, world.chain)


def _with_fields(**fields: bytes) -> Evidence:
    """Evidence of the app's machine whose quote has other fields."""
    machine = app_machine()
    rtmr = replay_event_log(machine.platform.event_log())
    honest = machine.evidence(BOUND_TO)
    body = parse_quote(honest.quote).body
    assert isinstance(body, TdReport)
    registers = TdRegisters(body.mr_td, rtmr[0], rtmr[1], rtmr[2], rtmr[3], mr_config_id=body.mr_config_id)
    quote = make_quote(PKI, registers=registers, report_data=BOUND_TO, fields_override=fields)
    return replace(honest, quote=quote)


def test_report_559_an_unused_configuration_register_matches_nothing(world: World) -> None:
    """Zero means that the host pinned nothing, and pins nothing; a register that is used must fit the app."""
    world.verifier.appraise(_with_fields(mr_config_id=bytes(48)), bound_to=BOUND_TO)

    for other in (b"\1" + bytes(47), b"\1" + b"x" * 32 + bytes(15), b"\4" + bytes(47)):
        with pytest.raises(AppraisalError, match="MRCONFIGID"):
            world.verifier.appraise(_with_fields(mr_config_id=other), bound_to=BOUND_TO)


@pytest.mark.parametrize(
    "blob",
    [
        b"\x00\x00\x03" + b"\xff" * 20,
        b"\x00\x00" + write_length(4) + b"abcd" + write_length((1 << 30) - 1),
        bytes(MAX_EVIDENCE + 1),
    ],
    ids=["a length of many bytes", "a billion events", "more than 10 MiB"],
)
def test_reports_566_and_567_lengths_are_bounded_by_what_came(blob: bytes) -> None:
    """What a stranger states as a length is compared with what is there before anything is set aside for it."""
    with pytest.raises(EvidenceMalformedError, match="want"):
        parse_evidence(blob)


def test_report_612_the_machine_a_certificate_names_is_that_of_verified_evidence(
    release: KeyRelease, world: World
) -> None:
    """App info in a certificate comes from what was verified for it, down to the device; nothing is taken over."""
    asked = request(app_machine())

    leaf = load_certificate(release.certificate(KEYS.root_ca_pem, *asked, "", "request")[0])

    info = parse_app_info(certificate_payload(leaf, OID_APP_INFO) or b"")
    assert (info.device_id, info.app_id) == (device_id(PKI.platform.ppid), world.chain.asked[-1].app_id)


def test_reports_614_to_618_what_a_host_states_is_only_transport(release: KeyRelease) -> None:
    """A vm_config of the host's choice changes what is compared, never what is believed."""
    machine = app_machine()
    told = json.loads(machine.platform.config)
    other = make_image("another image")

    lies = {
        "another image's name": {**told, "os_image_hash": other.os_image_hash.hex()},
        "another shape": {**told, "memory_size": 4 << 30},
        "no measurement": {name: value for name, value in told.items() if name != "tdx_measurement"},
    }
    for lie in lies.values():
        with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: "):
            release.app_keys(certificate_of(machine), json.dumps(lie), "request")


def test_weakness_d_an_image_is_never_merely_claimed(world: World) -> None:
    """A machine that runs another image and names an allowed one, with that one's own documents, is refused."""
    other = make_image("another image")
    world.chain.os_images.add(other.os_image_hash)
    config = other.vm_config()

    honest = app_machine().evidence(BOUND_TO)
    named = replace(honest, config=serialise_vm_config(config))
    lied = replace(config, os_image_hash=os_image_hash(b"another list\n"))
    without_list = replace(honest, config=serialise_vm_config(lied))

    with pytest.raises(AppraisalError, match=r"^Failed to verify os image hash: MRTD: want "):
        world.verifier.appraise(named, bound_to=BOUND_TO)
    with pytest.raises(MeasurementMalformedError, match="its SHA-256 is not the os image hash"):
        world.verifier.appraise(without_list, bound_to=BOUND_TO)


def test_audit_06_every_attribute_that_is_not_for_production_is_refused(release: KeyRelease, world: World) -> None:
    """Not only DEBUG: each other bit of the first byte, and a clear SEPT_VE_DISABLE, ends at the same step."""
    with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: step 14: "):
        release.app_keys(certificate_of(app_machine(defects=Defects(debug=True))), "", "request")

    production = 1 << 28
    for attributes in (0, *(production | 1 << bit for bit in range(8))):
        other = _with_fields(td_attributes=attributes.to_bytes(8, "little"))
        with pytest.raises(QuoteUntrustedError, match=r"^step 14: "):
            world.verifier.appraise(other, bound_to=BOUND_TO)
    world.verifier.appraise(_with_fields(td_attributes=production.to_bytes(8, "little")), bound_to=BOUND_TO)


def test_audit_0a_the_root_of_trust_is_pinned() -> None:
    """One certificate, by its bytes; its fingerprint is said at every start and in every line of the decision log."""
    assert [root.fingerprint[:16] for root in INTEL_ROOTS.roots] == ["44a0196b2b99f889"]


def test_audit_0b_revocation_is_checked(release: KeyRelease, world: World) -> None:
    """A platform whose certificate its maker revoked gets nothing from the next request on."""
    certificate = certificate_of(app_machine())
    release.app_keys(certificate, "", "request")
    world.collateral.collateral = PKI.collateral(revoked=(PKI.pck.serial_number,))

    with pytest.raises(KeyReleaseDeniedError, match=r"step 7: |step 8: |revoked"):
        release.app_keys(certificate, "", "request")


def test_report_563_a_foreign_simulator_is_no_platform(release: KeyRelease) -> None:
    """A simulator under another root than the configured one is nobody."""
    foreign = SimulatedPki.generate(AT, seed=b"attacker")

    with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: step 3: "):
        release.app_keys(certificate_of(app_machine(pki=foreign)), "", "request")


def test_evidence_that_was_cut_is_refused() -> None:
    """Of each prefix of genuine evidence nothing is believed."""
    whole = serialise_evidence(app_machine().evidence(BOUND_TO))

    for end in range(1, len(whole), 97):
        with pytest.raises(EvidenceMalformedError, match="want"):
            parse_evidence(whole[:end])
