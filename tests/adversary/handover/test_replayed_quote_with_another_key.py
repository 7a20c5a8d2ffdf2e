"""Attack: a captured quote of an allowed node is put around another key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import AppraisalError
from dstack.values import Digest32
from replicator.documents import QuotedRequest, parse_request, serialise_request
from tests.handover_attacks import nothing_left
from tests.worlds import Site, make_handover


@pytest.mark.parametrize("field", ["public_key", "nonce"])
def test_a_quote_does_not_carry_another_key(tmp_path: Path, site: Site, field: str) -> None:
    """The quote binds key and nonce: with another of either it is for something else."""
    world = make_handover(tmp_path, site)
    captured = parse_request(world.request())
    stolen = replace(captured, request=replace(captured.request, **{field: Digest32(b"\x66" * 32)}))

    with pytest.raises(AppraisalError, match="report data"):
        world.old.onboard(serialise_request(stolen).encode())

    assert nothing_left(world)


def test_a_quote_for_another_purpose_does_not_pass(tmp_path: Path, site: Site) -> None:
    """A quote that the allowed node made as an old node is no request."""
    world = make_handover(tmp_path, site)
    captured = parse_request(world.request())
    receipt = world.answer(world.request()).receipt
    other = world.new.identity.quoted(receipt.report_data())

    with pytest.raises(AppraisalError, match="report data"):
        world.old.onboard(serialise_request(QuotedRequest(captured.request, other)).encode())
