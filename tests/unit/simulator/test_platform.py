"""A simulated machine behaves as a TD does, and its defects show where verifiers look."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.attestation.appraise import appraise
from dstack.attestation.quote import TdReport, parse_quote
from dstack.attestation.report_data import padded_report_data
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import AcceptStatus, VerificationPolicy
from dstack.attestation.verify import verify_quote
from dstack.errors import MeasurementMalformedError, QuoteUntrustedError
from dstack.guest.platform import platform_evidence
from dstack.measurement.compose import compose_hash
from dstack.measurement.event_log import RuntimeEvent, replay_event_log
from dstack.measurement.mr_config_id import mr_config_id_v1
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.os_image import make_image
from dstack.simulator.platform import Defects, SimulatedPlatform
from tests.worlds import NOW, Site, app_compose

REPORT_DATA = padded_report_data(b"nonce")


@pytest.fixture(scope="module")
def site() -> Site:
    """A simulated platform and an OS image."""
    return Site.make()


def report(platform: SimulatedPlatform) -> TdReport:
    """What the machine quotes now."""
    body = parse_quote(platform.quote(REPORT_DATA)).body
    assert isinstance(body, TdReport)
    return body


def test_registers_are_those_of_the_image_and_the_compose_file(site: Site) -> None:
    """A machine just powered on quotes its image's registers, a zero RTMR3, and MRCONFIGID of its compose hash."""
    platform = site.platform(app_compose())

    quoted = report(platform)

    assert [quoted.rtmr0, quoted.rtmr1, quoted.rtmr2, quoted.rtmr3] == [
        *replay_event_log(platform.event_log()).values()
    ]
    assert quoted.rtmr3 == bytes(48)
    assert quoted.mr_config_id == mr_config_id_v1(compose_hash(app_compose()))


def test_extending_changes_rtmr3_alone(site: Site) -> None:
    """An event moves RTMR3 and nothing else, and cannot be taken back."""
    platform = site.platform(app_compose())
    before = report(platform)

    platform.extend(RuntimeEvent("something", b""))

    after = report(platform)
    assert after.rtmr3 != before.rtmr3
    assert replace(after, rtmr3=before.rtmr3) == before


def test_evidence_of_a_booted_machine_appraises(site: Site, tmp_path: Path) -> None:
    """What a simulated machine shows passes the same verification and appraisal as a real one's."""
    machine = site.machine(tmp_path)
    evidence = platform_evidence(machine.platform, REPORT_DATA)

    verified = verify_quote(evidence.quote, site.pki.collateral(), roots=site.roots, at=NOW)
    appraisal = appraise(evidence, verified, expected_report_data=REPORT_DATA)

    assert verified.root.simulated is True
    assert appraisal.compose_hash == machine.booted.app_compose.compose_hash
    assert appraisal.os_image_hash == site.image.os_image_hash


def test_debug_machine_is_refused_by_verifiers(site: Site) -> None:
    """The DEBUG attribute is in the quote."""
    platform = site.platform(app_compose(), Defects(debug=True))

    with pytest.raises(QuoteUntrustedError, match="step 14"):
        verify_quote(platform.quote(REPORT_DATA), site.pki.collateral(), roots=site.roots, at=NOW)


def test_tcb_status_is_what_the_collateral_says(site: Site) -> None:
    """A machine of a given status is refused by default, and gets exactly that status where it is accepted."""
    platform = site.platform(app_compose(), Defects(tcb_status="SWHardeningNeeded"))
    quote, collateral = platform.quote(REPORT_DATA), site.pki.collateral()
    lenient = VerificationPolicy(relaxations=(AcceptStatus(TcbStatus("SWHardeningNeeded"), NOW + timedelta(days=1)),))

    with pytest.raises(QuoteUntrustedError, match="SWHardeningNeeded"):
        verify_quote(quote, collateral, roots=site.roots, at=NOW)

    verified = verify_quote(quote, collateral, roots=site.roots, at=NOW, policy=lenient)
    assert verified.tcb_status is TcbStatus("SWHardeningNeeded")


def test_vm_config_of_another_image_is_refused(site: Site) -> None:
    """A host that states another image than the one that boots is told so."""
    config = serialise_vm_config(make_image("another").vm_config())

    with pytest.raises(MeasurementMalformedError, match="vm_config: want the image"):
        SimulatedPlatform(site.pki, site.image, config, compose_hash(app_compose()))
