"""A16: an indexer that saw logs removed by a reorganisation.

`OperatorReader` and `read_governed` read everything anew each time, and compare the hashes of blocks; what is called is
addressed by the hash of its block, and the list of proposals is compared with the count that the contract gives.
`EventIndex` is carried on from where it ended, and takes out again what was in blocks that are gone.
"""

from __future__ import annotations

import pytest

from dstack.chain.client import ChainClient
from dstack.chain.history import past_events, read_header, require_unchanged
from dstack.chain.index import EventIndex, carry_on
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


def indexed(world: GovernedWorld, index: EventIndex) -> EventIndex:
    """The index, carried on to the newest block."""
    return carry_on(world.w3, {world.operator.address: "UpgradeOperator"}, index)


def test_a16_an_index_takes_out_what_was_removed(governed: GovernedWorld) -> None:
    """Events of blocks that are gone leave it, those of the other branch come in, and the rest is not read again."""
    governed.propose(governed.compose())
    first = indexed(governed, EventIndex(0))
    governed.propose(governed.compose(b"\x01" * 32))
    governed.deny(governed.compose())
    second = indexed(governed, first)

    governed.rpc("anvil_rollback", 2)
    governed.propose(governed.compose(b"\x02" * 32))
    third = indexed(governed, second)

    assert [event.name for event in second.events[len(first.events) :]] == ["ProposalQueued", "ActionDenied"]
    assert third.dropped == 2
    assert third.events[: len(first.events)] == first.events
    assert third.events == indexed(governed, EventIndex(0)).events


def test_a16_an_index_survives_a_shorter_chain(governed: GovernedWorld) -> None:
    """A chain that ends before the index did leaves what both have, also if nothing new has come."""
    governed.propose(governed.compose())
    first = indexed(governed, EventIndex(0))
    governed.propose(governed.compose(b"\x01" * 32))
    second = indexed(governed, first)

    governed.rpc("anvil_rollback", 1)
    third = indexed(governed, second)

    assert (third.events, third.newest, third.dropped) == (first.events, first.newest, 1)


def test_a16_an_index_that_nothing_removed_reads_on(governed: GovernedWorld) -> None:
    """Carried on twice without a new block it stays what it is."""
    governed.propose(governed.compose())
    first = indexed(governed, EventIndex(0))

    assert indexed(governed, first) == first


def test_a16_events_of_two_branches_are_not_mixed(governed: GovernedWorld) -> None:
    """What was read up to a block that is gone meanwhile is no answer."""
    governed.propose(governed.compose())
    newest = read_header(governed.w3, "latest")
    require_unchanged(governed.w3, newest)
    governed.rpc("anvil_rollback", 1)
    governed.propose(governed.compose(b"\x01" * 32))

    with pytest.raises(ChainUnavailableError, match="reorganised at block"):
        require_unchanged(governed.w3, newest)


def test_a16_decisions_rest_on_finalized_blocks_unless_told_otherwise(governed: GovernedWorld) -> None:
    """By default what can still be removed is not read at all."""
    governed.propose(governed.compose())

    assert ChainClient(governed.chain.rpc_url).block_tag == "finalized"
    assert len(reader(governed).proposals()) == 1
    assert ChainClient(governed.chain.rpc_url).block().number < governed.w3.eth.block_number
