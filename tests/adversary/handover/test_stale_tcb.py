"""Attack: the right compose file on a platform with known holes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import QuoteUntrustedError
from dstack.simulator.platform import Defects
from tests.handover_attacks import nothing_left, request_quoted_by, unfit_machine
from tests.worlds import Site, make_handover


@pytest.mark.parametrize("status", ["OutOfDate", "ConfigurationNeeded", "SWHardeningNeeded", "Revoked"])
def test_a_platform_that_is_not_up_to_date_is_refused(tmp_path: Path, site: Site, status: str) -> None:
    """A platform whose TCB status is not among the accepted ones gets nothing."""
    world = make_handover(tmp_path, site)
    machine = unfit_machine(world, defects=Defects(tcb_status=status))

    with pytest.raises(QuoteUntrustedError, match=rf"step 1[39]: .*{status}"):
        world.old.onboard(request_quoted_by(world, machine))

    assert nothing_left(world)


def test_overdue_statements_are_refused(tmp_path: Path, site: Site) -> None:
    """Collateral that nobody refreshed for a month says nothing about today."""
    world = make_handover(tmp_path, site)
    world.clock.advance(timedelta(days=31))

    with pytest.raises(QuoteUntrustedError, match=r"step 4"):
        world.old.onboard(request_quoted_by(world, unfit_machine(world)))
