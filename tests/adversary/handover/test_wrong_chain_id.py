"""Attack: a request that names another chain than the old node's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import AppraisalError, HandoverRefusedError
from replicator.documents import parse_request, serialise_request
from tests.handover_attacks import nothing_left, quoted_by
from tests.worlds import CHAIN_ID, LAW, Site, make_handover

ELSEWHERE = replace(LAW, chain_id=1)


def test_wrong_chain_id_is_refused(tmp_path: Path, site: Site) -> None:
    """A properly quoted request for another chain is refused, naming both chains, before anybody is asked."""
    world = make_handover(tmp_path, site)
    request = replace(parse_request(world.request()).request, law=ELSEWHERE)

    with pytest.raises(HandoverRefusedError, match=f"want chain {CHAIN_ID}, got 1"):
        world.old.onboard(quoted_by(world.new_machine, request))

    assert world.chain.asked == []


def test_chain_id_rewritten_on_the_way_breaks_the_quote(tmp_path: Path, site: Site) -> None:
    """A request made for another chain whose chain id is rewritten is no longer what the quote binds."""
    world = make_handover(tmp_path, site)
    genuine = parse_request(world.request())
    made_elsewhere = parse_request(quoted_by(world.new_machine, replace(genuine.request, law=ELSEWHERE)))
    rewritten = replace(made_elsewhere, request=genuine.request)

    with pytest.raises(AppraisalError, match="report data"):
        world.old.onboard(serialise_request(rewritten).encode())

    assert nothing_left(world)
