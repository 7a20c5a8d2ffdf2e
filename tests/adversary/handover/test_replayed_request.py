"""Attack: a captured request or answer is sent once more."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import HandoverRefusedError, KeyReleaseDeniedError
from tests.worlds import SECRET, Site, make_handover, receive


def test_replayed_request_gains_nothing(tmp_path: Path, site: Site) -> None:
    """A request sent again gets the same answer, sealed to the same key, and leaves no second receipt."""
    world = make_handover(tmp_path, site)
    request = world.request()
    lines = {world.old.onboard(request).line for _ in range(3)}

    assert len(lines) == 1
    assert len(world.receipts("old")) == 1
    assert world.old.status()["answered_requests"] == 1


def test_replay_is_judged_anew(tmp_path: Path, site: Site) -> None:
    """A request whose node the chain has meanwhile forbidden gets no second answer."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.old.onboard(request)
    world.chain.allowed.remove(world.new_machine.booted.app_compose.compose_hash)

    with pytest.raises(KeyReleaseDeniedError, match="new node: Compose hash not allowed"):
        world.old.onboard(request)


def test_replay_after_the_end_is_refused_for_its_age(tmp_path: Path, site: Site) -> None:
    """When the old node has forgotten a request, its expiry refuses it."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.old.onboard(request)
    world.clock.advance(timedelta(hours=25))

    with pytest.raises(HandoverRefusedError, match="request: expired"):
        world.old.onboard(request)

    assert world.old.status()["answered_requests"] == 0


def test_replayed_answer_changes_nothing(tmp_path: Path, site: Site) -> None:
    """An answer that was stored is acknowledged again; what an app wrote since stays."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    receive(world.new, sending)
    world.new_secure_file.write_bytes(SECRET + b", and what the app wrote")

    receive(world.new, sending)

    assert world.new_secure_file.read_bytes() == SECRET + b", and what the app wrote"
    assert len(world.receipts("new")) == 1
