"""Attack: a request is kept until it has expired, or is made to last for ever."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import AppraisalError, HandoverRefusedError
from replicator.documents import parse_request, serialise_request
from replicator.handover import REQUEST_LIFETIME, TRANSFER_LIFETIME
from tests.handover_attacks import nothing_left, quoted_by
from tests.worlds import Site, make_handover


def test_expired_request_is_refused(tmp_path: Path, site: Site) -> None:
    """From the second of its expiry on, an unanswered request is refused."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.clock.advance(timedelta(minutes=10))

    with pytest.raises(HandoverRefusedError, match="request: expired"):
        world.old.onboard(request)

    assert nothing_left(world)


def test_request_is_answered_in_its_last_second(tmp_path: Path, site: Site) -> None:
    """One second before its expiry a request is still good."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.clock.advance(timedelta(minutes=9, seconds=59))

    world.old.onboard(request)

    assert len(world.receipts("old")) == 1


def test_prolonged_request_breaks_the_quote(tmp_path: Path, site: Site) -> None:
    """Whoever moves the expiry of a captured request loses the quote's binding."""
    world = make_handover(tmp_path, site)
    captured = parse_request(world.request())
    world.clock.advance(timedelta(minutes=10))
    prolonged = replace(captured, request=replace(captured.request, expires_at=captured.request.expires_at + 600))

    with pytest.raises(AppraisalError, match="report data"):
        world.old.onboard(serialise_request(prolonged).encode())


def test_request_without_end_is_refused(tmp_path: Path, site: Site) -> None:
    """A properly quoted request that is good for longer than a request may be is refused."""
    world = make_handover(tmp_path, site)
    request = parse_request(world.request()).request
    endless = replace(request, expires_at=request.expires_at + 3600)

    with pytest.raises(HandoverRefusedError, match="want it to expire by"):
        world.old.onboard(quoted_by(world.new_machine, endless))


def test_transfer_of_an_ended_request_is_refused(tmp_path: Path, site: Site) -> None:
    """What comes for a request that ended meanwhile is refused, and nothing of it is stored or left."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    delivery = world.new.receive(sending.line.encode())
    world.clock.advance(REQUEST_LIFETIME + TRANSFER_LIFETIME)
    world.new.request_key()

    with pytest.raises(HandoverRefusedError, match="stream: the request that it answers has ended; want a new one"):
        delivery.add(next(sending.chunks(0)))

    delivery.close()
    assert not world.new_secure_file.exists()
    assert world.receipts("new") == []
    assert [path.name for path in world.new_secure_file.parent.glob("*incoming*")] == []
