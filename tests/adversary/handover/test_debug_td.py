"""Attack: the right compose file on a machine into whose memory its host may look."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.errors import HandoverRefusedError, QuoteUntrustedError
from dstack.simulator.platform import Defects
from dstack.values import AppId
from tests.handover_attacks import deliver, forged, nothing_left, request_quoted_by, unfit_machine
from tests.worlds import APP_ID, Site, make_handover


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

    assert nothing_left(world)


def test_nothing_is_taken_from_a_debug_machine(tmp_path: Path, site: Site) -> None:
    """A new node does not take a secret that the host of the sender knows."""
    world = make_handover(tmp_path, site)
    request = world.request()
    compose = world.old_machine.booted.app_compose.raw
    stranger = site.machine(tmp_path / "unfit", compose, defects=Defects(debug=True))

    with pytest.raises(QuoteUntrustedError, match="step 14"):
        deliver(world, *forged(stranger, request, world.answer(request)))


def test_machine_of_another_app_is_refused(tmp_path: Path, site: Site) -> None:
    """A machine that measured another app id is refused, whatever its request says."""
    world = make_handover(tmp_path, site)

    with pytest.raises(HandoverRefusedError, match=f"new node: want app {APP_ID.hex()}, got {'ee' * 20}"):
        world.old.onboard(request_quoted_by(world, unfit_machine(world, app_id=AppId(b"\xee" * 20))))

    assert nothing_left(world)
