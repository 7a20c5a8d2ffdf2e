"""Attack: a captured request or answer is sent once more."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import HandoverRefusedError
from tests.worlds import SECRET, Site, make_handover


def test_replayed_request_is_refused(tmp_path: Path, site: Site) -> None:
    """An old node answers a request once; the same request again is refused and leaves no second receipt."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    world.old.onboard(request)

    with pytest.raises(HandoverRefusedError, match="was answered before"):
        world.old.onboard(request)

    assert len(world.receipts("old")) == 1


def test_replay_after_expiry_is_refused_for_its_age(tmp_path: Path, site: Site) -> None:
    """When the old node has forgotten a request, its expiry refuses it."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    world.old.onboard(request)
    world.clock.advance(timedelta(minutes=12))

    with pytest.raises(HandoverRefusedError, match="request: expired"):
        world.old.onboard(request)

    assert world.old.status().answered_requests == 0


def test_replayed_answer_is_refused(tmp_path: Path, site: Site) -> None:
    """A new node takes an answer once; afterwards no request waits for it."""
    world = make_handover(tmp_path, site)
    answer = world.old.onboard(world.new.request_key().encode()).encode()
    world.new.receive_key(answer)

    with pytest.raises(HandoverRefusedError, match=r"no request [0-9a-f]{64} waits here"):
        world.new.receive_key(answer)

    assert world.new_secure_file.read_bytes() == SECRET
