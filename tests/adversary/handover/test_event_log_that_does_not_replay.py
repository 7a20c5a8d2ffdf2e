"""Attack: a machine quotes one RTMR3 and shows the log of another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dstack.attestation.evidence import Evidence
from dstack.errors import AppraisalError, KeyReleaseDeniedError
from dstack.measurement.event_log import RuntimeEvent
from replicator.documents import parse_request
from tests.handover_attacks import nothing_left, quoted_by, request_quoted_by, unfit_machine
from tests.worlds import Site, app_compose, make_handover


def test_a_hidden_event_is_noticed(tmp_path: Path, site: Site) -> None:
    """A machine that extended more than it shows is refused: the log is replayed."""
    world = make_handover(tmp_path, site)
    machine = unfit_machine(world)
    request = parse_request(world.request()).request
    shown = machine.evidence(request.report_data())
    machine.platform.extend(RuntimeEvent("left-out", b""))
    quote = machine.platform.quote(request.report_data())

    with pytest.raises(AppraisalError, match="RTMR3"):
        world.old.onboard(quoted_by(machine, request, lambda _: replace(shown, quote=quote)))

    assert nothing_left(world)


def test_the_log_of_the_allowed_app_over_other_registers_is_noticed(tmp_path: Path, site: Site) -> None:
    """A machine that ran something else cannot show the allowed app's log."""
    world = make_handover(tmp_path, site)
    evil = site.machine(tmp_path / "evil", app_compose("evil:1"))
    request = parse_request(world.request()).request
    allowed = world.new_machine.evidence(request.report_data())

    def with_allowed_log(evidence: Evidence) -> Evidence:
        return replace(evidence, event_log=allowed.event_log, runtime_events=allowed.runtime_events)

    with pytest.raises(AppraisalError, match="RTMR3"):
        world.old.onboard(quoted_by(evil, request, with_allowed_log))


def test_late_events_under_system_names_change_nothing(tmp_path: Path, site: Site) -> None:
    """A compose hash that an app extends after `system-ready` is not taken for the one that was booted."""
    world = make_handover(tmp_path, site)
    evil = site.machine(tmp_path / "evil", app_compose("evil:1"))
    evil.platform.extend(RuntimeEvent("compose-hash", world.new_machine.booted.app_compose.compose_hash))

    with pytest.raises(KeyReleaseDeniedError, match=evil.booted.app_compose.compose_hash.hex()):
        world.old.onboard(request_quoted_by(world, evil))

    assert nothing_left(world)
