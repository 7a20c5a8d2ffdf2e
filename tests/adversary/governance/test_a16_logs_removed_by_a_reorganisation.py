"""A16: an indexer that saw logs removed by a reorganisation.

We keep no index. `OperatorReader` and `history.past_events` read everything anew each time; what is called is addressed
by the hash of its block, and the list of proposals is compared with the count that the contract gives. A persistent
indexer, or one that follows a reorganisation, does not exist here.
"""

from __future__ import annotations

import pytest

from dstack.chain.client import ChainClient
from dstack.chain.history import past_events
from dstack.chain.operator_reader import OperatorReader
from dstack.errors import ChainUnavailableError
from tests.governed_world import GovernedWorld


def reader(world: GovernedWorld, tag: str = "latest") -> OperatorReader:
    """Asks the operator at this block tag."""
    return OperatorReader(ChainClient(world.chain.rpc_url, block_tag=tag), world.operator.address)


def names(world: GovernedWorld) -> list[str]:
    """The operator's events up to the newest block."""
    known = {world.operator.address: "UpgradeOperator"}
    events = past_events(world.w3, known, first_block=0, last_block=world.w3.eth.block_number)
    return [event.name for event in events]


def test_a16_what_was_removed_is_gone_from_the_next_answer(governed: GovernedWorld) -> None:
    """After the chain took blocks back, neither the list of proposals nor the history shows what was in them."""
    kept = governed.propose(governed.compose())
    before = names(governed)
    governed.propose(governed.compose(b"\x01" * 32))
    governed.deny(governed.compose())
    seen = [bytes(each.id) for each in reader(governed).proposals()], names(governed)

    governed.rpc("anvil_rollback", 2)

    assert (len(seen[0]), seen[1]) == (2, [*before, "ProposalQueued", "ActionDenied"])
    assert [bytes(each.id) for each in reader(governed).proposals()] == [kept.id]
    assert names(governed) == before


def test_a16_another_branch_is_read_as_it_is(governed: GovernedWorld) -> None:
    """At the same height another proposal with the same number is the one that is shown."""
    governed.propose(governed.compose(b"\x01" * 32))
    height = governed.w3.eth.block_number
    governed.rpc("anvil_rollback", 1)

    other = governed.propose(governed.compose(b"\x02" * 32))

    assert governed.w3.eth.block_number == height
    assert [bytes(each.id) for each in reader(governed).proposals()] == [other.id]


def test_a16_a_block_that_was_removed_answers_nothing(governed: GovernedWorld) -> None:
    """A question about a block that is gone is neither yes nor no."""
    client = ChainClient(governed.chain.rpc_url, block_tag="latest")
    governed.propose(governed.compose())
    block = client.block()
    governed.rpc("anvil_rollback", 1)
    governed.propose(governed.compose(b"\x01" * 32))

    with pytest.raises(ChainUnavailableError, match="eth_call"):
        client.call(governed.operator.address, bytes.fromhex("da35c664"), block)


def test_a16_decisions_rest_on_finalized_blocks_unless_told_otherwise(governed: GovernedWorld) -> None:
    """By default what can still be removed is not read at all."""
    governed.propose(governed.compose())

    assert ChainClient(governed.chain.rpc_url).block_tag == "finalized"
    assert len(reader(governed).proposals()) == 1
    assert ChainClient(governed.chain.rpc_url).block().number < governed.w3.eth.block_number
