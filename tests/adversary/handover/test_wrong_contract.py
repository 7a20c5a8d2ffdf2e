"""Attack: a request under another contract, which its sender may own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import HandoverRefusedError
from replicator.documents import Address, parse_request
from tests.handover_attacks import deliver, forged, quoted_by
from tests.worlds import CONTRACT, LAW, OPERATOR, Site, make_handover


@pytest.mark.parametrize(("name", "ours"), [("operator", OPERATOR), ("contract", CONTRACT)])
def test_wrong_contract_is_refused(tmp_path: Path, site: Site, name: str, ours: Address) -> None:
    """A properly quoted request under another UpgradeOperator or KmsAuth is refused, before anybody is asked."""
    world = make_handover(tmp_path, site)
    elsewhere = replace(LAW, **{name: Address(b"\x66" * 20)})
    request = replace(parse_request(world.request()).request, law=elsewhere)

    with pytest.raises(HandoverRefusedError, match=f"want {name} 0x{ours.hex()}, got 0x{'66' * 20}"):
        world.old.onboard(quoted_by(world.new_machine, request))

    assert world.chain.asked == []


def test_an_answer_under_another_contract_answers_nothing(tmp_path: Path, site: Site) -> None:
    """An allowed old node that works under another contract cannot answer a request under ours."""
    world = make_handover(tmp_path, site)
    request = world.request()
    genuine = world.answer(request)
    elsewhere = replace(LAW, operator=Address(b"\x66" * 20))

    with pytest.raises(HandoverRefusedError, match=r"no request [0-9a-f]{64} waits here"):
        deliver(
            world,
            *forged(
                world.old_machine,
                request,
                genuine,
                change=lambda terms: replace(terms, request=replace(terms.request, law=elsewhere)),
            ),
        )
