"""Attack: the host sets the clock of a machine ahead for a moment, so that it takes everything for expired for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import HandoverRefusedError
from replicator.config import MAX_AGE
from replicator.documents import parse_request
from replicator.handover import REQUEST_LIFETIME
from replicator.moments import Moments
from tests.worlds import BLOCK, NOW, SECRET, SETTINGS, Clock, Site, make_handover, make_node

YEAR = timedelta(days=365)


def glimpse(clock: Clock, by: timedelta, look: Callable[[], object]) -> None:
    """Set *clock* ahead, have something look at it, and set it right."""
    clock.advance(by)
    look()
    clock.advance(-by)


@pytest.mark.parametrize("ahead", [MAX_AGE, YEAR])
@pytest.mark.parametrize("nodes", [("old",), ("new",), ("old", "new")])
def test_a_handover_goes_through_after_a_clock_was_ahead(
    tmp_path: Path, site: Site, nodes: tuple[str, ...], ahead: timedelta
) -> None:
    """As soon as the clock is right again a node takes the right time, without a restart."""
    world = make_handover(tmp_path, site)
    for name in nodes:
        glimpse(world.clock, ahead, getattr(world, name).status)
    world.chain.now = replace(BLOCK, timestamp=int(NOW.timestamp()) - 15 * 60)

    request = world.request()
    world.hand_over()

    assert parse_request(request).request.expires_at == (NOW + REQUEST_LIFETIME).timestamp()
    assert world.new_secure_file.read_bytes() == SECRET


def test_what_was_seen_within_the_age_of_a_block_still_counts(tmp_path: Path, site: Site) -> None:
    """The block cannot tell such a moment from the right one: it counts until the clock has come there."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.chain.now = replace(BLOCK, timestamp=int(NOW.timestamp()) - 15 * 60)
    glimpse(world.clock, timedelta(minutes=10), world.old.status)

    with pytest.raises(HandoverRefusedError, match="request: expired"):
        world.old.onboard(request)


def test_where_the_age_of_blocks_is_not_asked_nothing_is_forgotten(tmp_path: Path, site: Site) -> None:
    """A development chain's clock says nothing of the time."""
    world = make_handover(tmp_path, site)
    settings = replace(SETTINGS, max_age=None)
    old = make_node(tmp_path / "old", world.old_machine, site, world.chain, world.clock, settings)
    glimpse(world.clock, 2 * MAX_AGE, old.status)

    with pytest.raises(HandoverRefusedError, match="request: expired"):
        old.onboard(world.request())


def test_a_block_says_how_far_what_was_seen_counts() -> None:
    """Up to its age beyond it, and then not at all; it is never before the block, which itself is not kept."""
    clock = Clock()
    moments = Moments(clock, MAX_AGE)
    block = replace(BLOCK, timestamp=int((NOW - timedelta(minutes=20)).timestamp()))
    later = replace(BLOCK, timestamp=int((NOW + timedelta(minutes=5)).timestamp()))

    assert Moments(clock, timedelta.max).now(block) == NOW
    glimpse(clock, timedelta(minutes=40), moments.now)
    assert [moments.now(block), moments.now()] == [NOW + timedelta(minutes=40)] * 2
    glimpse(clock, timedelta(minutes=40, seconds=1), moments.now)
    assert moments.now() == NOW + timedelta(minutes=40, seconds=1)
    assert [moments.now(block), moments.now(later), moments.now()] == [NOW, NOW + timedelta(minutes=5), NOW]
