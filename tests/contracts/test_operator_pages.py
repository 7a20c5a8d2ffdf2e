"""UpgradeOperator, proposalIds: history in pages."""

from __future__ import annotations

from dstack.chain.operator import (
    Kind,
    propose_call,
)
from tests.chain_world import COMPOSE, ChainWorld, operator_reader


def test_history_is_read_in_pages(world: ChainWorld) -> None:
    """Ids come in order of proposal; a page is cut at the end, and empty behind it."""
    proposals = [world.propose(world.on_app(Kind.COMPOSE_HASH, bytes([number] * 32))) for number in range(1, 4)]
    ids = [proposal.id for proposal in proposals]
    page = world.operator.functions.proposalIds

    assert [page(0, 2).call(), page(2, 2).call(), page(3, 2).call(), page(0, 0).call()] == [ids[:2], ids[2:], [], []]
    assert page(1, 2**256 - 1).call() == ids[1:]
    assert operator_reader(world).proposals() == tuple(proposals)


def test_a_page_holds_at_most_100_ids(world: ChainWorld) -> None:
    """No question loops without a bound."""
    call = propose_call(world.deployment.operator, world.content(world.on_app(Kind.COMPOSE_HASH, COMPOSE)))
    for _ in range(101):
        world.call(call)

    assert len(world.operator.functions.proposalIds(0, 101).call()) == 100
