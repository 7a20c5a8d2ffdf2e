"""Attack: the right compose file on a machine that must not get secrets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dstack.attestation.evidence import serialise_evidence
from dstack.errors import AppraisalError, HandoverRefusedError, KeyReleaseDeniedError, QuoteUntrustedError
from dstack.measurement.event_log import RuntimeEvent
from dstack.simulator.platform import Defects
from dstack.values import AppId
from replicator.documents import QuotedRequest, parse_request, serialise_request
from tests.worlds import APP_ID, Handover, Machine, Site, app_compose, make_handover


def unfit_machine(world: Handover, *, defects: Defects | None = None, app_id: AppId = APP_ID) -> Machine:
    """Another machine that runs the new node's compose file."""
    compose = world.new_machine.booted.app_compose.raw
    return world.site.machine(world.folder / "unfit", compose, app_id=app_id, defects=defects)


def request_quoted_by(world: Handover, machine: Machine) -> bytes:
    """The new node's request, quoted by *machine* in its place."""
    request = parse_request(world.new.request_key().encode()).request
    evidence = serialise_evidence(machine.evidence(request.report_data()))
    return serialise_request(QuotedRequest(request, evidence)).encode()


def test_fit_machine_is_answered(tmp_path: Path, site: Site) -> None:
    """The same machine without a defect is answered: the refusals below are about the defects."""
    world = make_handover(tmp_path, site)

    world.old.onboard(request_quoted_by(world, unfit_machine(world)))

    assert len(world.receipts("old")) == 1


def test_debug_machine_is_refused(tmp_path: Path, site: Site) -> None:
    """A machine whose memory its host may read gets nothing."""
    world = make_handover(tmp_path, site)

    with pytest.raises(QuoteUntrustedError, match="step 14"):
        world.old.onboard(request_quoted_by(world, unfit_machine(world, defects=Defects(debug=True))))

    assert world.receipts("old") == []


def test_outdated_platform_is_refused(tmp_path: Path, site: Site) -> None:
    """A platform whose TCB status is not among the accepted ones gets nothing."""
    world = make_handover(tmp_path, site)

    with pytest.raises(QuoteUntrustedError, match="OutOfDate"):
        world.old.onboard(request_quoted_by(world, unfit_machine(world, defects=Defects(tcb_status="OutOfDate"))))

    assert world.receipts("old") == []


def test_machine_of_another_app_is_refused(tmp_path: Path, site: Site) -> None:
    """A machine that measured another app id is refused, whatever its request says."""
    world = make_handover(tmp_path, site)

    with pytest.raises(HandoverRefusedError, match=f"new node: want app {APP_ID.hex()}, got {'ee' * 20}"):
        world.old.onboard(request_quoted_by(world, unfit_machine(world, app_id=AppId(b"\xee" * 20))))

    assert world.receipts("old") == []


def test_event_log_of_the_allowed_app_over_other_registers_is_refused(tmp_path: Path, site: Site) -> None:
    """A machine that quotes one RTMR3 and shows the log of another is refused: the log is replayed."""
    world = make_handover(tmp_path, site)
    machine = unfit_machine(world)
    request = parse_request(world.new.request_key().encode()).request
    shown = machine.evidence(request.report_data())
    machine.platform.extend(RuntimeEvent("left-out", b""))
    hidden = replace(shown, quote=machine.platform.quote(request.report_data()))

    with pytest.raises(AppraisalError, match="RTMR3"):
        world.old.onboard(serialise_request(QuotedRequest(request, serialise_evidence(hidden))).encode())

    assert world.receipts("old") == []


def test_late_events_under_system_names_change_nothing(tmp_path: Path, site: Site) -> None:
    """A compose hash that an app extends after `system-ready` is not taken for the one that was booted."""
    world = make_handover(tmp_path, site)
    evil = site.machine(tmp_path / "evil", app_compose("evil:1"))
    evil.platform.extend(RuntimeEvent("compose-hash", world.new_machine.booted.app_compose.compose_hash))

    with pytest.raises(KeyReleaseDeniedError, match=evil.booted.app_compose.compose_hash.hex()):
        world.old.onboard(request_quoted_by(world, evil))

    assert world.receipts("old") == []
