"""Attack: more requests than a node can remember, or judge."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import DstackError, HandoverRefusedError
from replicator.documents import parse_request, serialise_request
from replicator.handover import MAX_PENDING
from tests.worlds import SECRET, Site, make_handover, receive


def test_requests_are_bounded_and_the_first_ones_stay_good(tmp_path: Path, site: Site) -> None:
    """However often a new node is made to ask, its first request is not lost, and the places come back by time."""
    world = make_handover(tmp_path, site)
    first = world.request()
    for _ in range(MAX_PENDING - 1):
        world.request()

    with pytest.raises(HandoverRefusedError, match=f"at most {MAX_PENDING} waiting"):
        world.request()
    receive(world.new, world.old.onboard(first))
    world.clock.advance(timedelta(minutes=10))
    world.request()

    assert world.new_secure_file.read_bytes() == SECRET


def test_a_flood_of_rubbish_keeps_nobody_out(tmp_path: Path, site: Site) -> None:
    """Many callers with worthless requests at once are all refused, and the one good request is answered."""
    world = make_handover(tmp_path, site)
    good = world.request()
    captured = parse_request(good)
    rubbish = serialise_request(type(captured)(captured.request, captured.evidence[:-1])).encode()
    refusals: list[DstackError] = []

    def flood() -> None:
        for _ in range(20):
            try:
                world.old.onboard(rubbish)
            except DstackError as exc:
                refusals.append(exc)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    receive(world.new, world.old.onboard(good))
    for thread in threads:
        thread.join()

    assert len(refusals) == 160
    assert len(world.receipts("old")) == 1
    assert world.old.status()["answered_requests"] == 1
