"""Attack: a request that names another chain or another contract than the old node's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dstack.attestation.evidence import serialise_evidence
from dstack.errors import AppraisalError, HandoverRefusedError
from replicator.documents import Address, Law, QuotedRequest, Request, parse_request, serialise_request
from tests.worlds import CHAIN_ID, CONTRACT, Handover, Site, make_handover


def quoted(world: Handover, request: Request) -> bytes:
    """The request with fresh, properly bound evidence of the new node."""
    evidence = serialise_evidence(world.new_machine.evidence(request.report_data()))
    return serialise_request(QuotedRequest(request, evidence)).encode()


def test_wrong_chain_id_is_refused(tmp_path: Path, site: Site) -> None:
    """A properly quoted request for another chain is refused, naming both chains."""
    world = make_handover(tmp_path, site)
    request = parse_request(world.new.request_key().encode()).request
    elsewhere = replace(request, law=Law(1, CONTRACT))

    with pytest.raises(HandoverRefusedError, match=f"want chain {CHAIN_ID}, got 1"):
        world.old.onboard(quoted(world, elsewhere))

    assert world.chain.asked == []


def test_wrong_contract_is_refused(tmp_path: Path, site: Site) -> None:
    """A properly quoted request for another contract is refused."""
    world = make_handover(tmp_path, site)
    request = parse_request(world.new.request_key().encode()).request
    elsewhere = replace(request, law=Law(CHAIN_ID, Address(b"\x66" * 20)))

    with pytest.raises(HandoverRefusedError, match=f"want contract 0x{CONTRACT.hex()}, got 0x{'66' * 20}"):
        world.old.onboard(quoted(world, elsewhere))

    assert world.chain.asked == []


def test_chain_id_rewritten_on_the_way_breaks_the_quote(tmp_path: Path, site: Site) -> None:
    """A request made for another chain whose chain id is rewritten is no longer what the quote binds."""
    world = make_handover(tmp_path, site)
    genuine = parse_request(world.new.request_key().encode())
    elsewhere = replace(genuine.request, law=Law(1, CONTRACT))
    made_elsewhere = parse_request(quoted(world, elsewhere))
    rewritten = replace(made_elsewhere, request=genuine.request)

    with pytest.raises(AppraisalError, match="report data"):
        world.old.onboard(serialise_request(rewritten).encode())

    assert world.chain.asked == []
