"""Attack: the host sets the clock of a machine back, so that what is old looks fresh."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import HandoverRefusedError, QuoteUntrustedError
from tests.handover_attacks import nothing_left
from tests.worlds import BLOCK, Site, make_handover, make_node


def test_a_clock_that_was_set_back_does_not_revive_a_request(tmp_path: Path, site: Site) -> None:
    """What was expired once stays expired, whatever the clock says later."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.clock.advance(timedelta(minutes=10))
    with pytest.raises(HandoverRefusedError, match="request: expired"):
        world.old.onboard(request)

    world.clock.advance(timedelta(minutes=-10))

    with pytest.raises(HandoverRefusedError, match="request: expired"):
        world.old.onboard(request)
    assert nothing_left(world)


def test_a_machine_that_starts_in_the_past_is_told_by_the_chain(tmp_path: Path, site: Site) -> None:
    """A node that never saw the right time takes it from the agreed block."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.chain.now = replace(BLOCK, timestamp=BLOCK.timestamp + 600)
    restarted = make_node(tmp_path / "old", world.old_machine, site, world.chain, world.clock)

    with pytest.raises(HandoverRefusedError, match="request: expired"):
        restarted.onboard(request)


def test_collateral_does_not_stay_fresh_by_a_slow_clock(tmp_path: Path, site: Site) -> None:
    """Statements that are overdue by the chain's time are overdue, for a peer as for the node itself."""
    world = make_handover(tmp_path, site)
    world.chain.now = replace(BLOCK, timestamp=BLOCK.timestamp + 31 * 86400)

    with pytest.raises(QuoteUntrustedError, match="step 4"):
        world.request()
