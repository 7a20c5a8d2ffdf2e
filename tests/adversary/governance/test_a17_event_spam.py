"""A17: event spam that hides a proposal."""

from __future__ import annotations

from eth_utils.abi import abi_to_signature
from web3 import Web3

from dstack.chain.artifacts import load_artifact
from dstack.chain.client import ChainClient
from dstack.chain.operator_reader import OperatorReader
from tests.governed_world import GovernedWorld, proposal_id, word
from tests.hostile_contracts import hostile


def test_a17_others_events_are_not_the_operators(governed: GovernedWorld) -> None:
    """Hundreds of look-alike events of another contract change neither the list nor its order."""
    spammer = hostile("Spammer").deploy(governed)
    first = governed.propose(governed.compose())
    (entry,) = (
        e for e in load_artifact("UpgradeOperator").abi if e["type"] == "event" and e["name"] == "ProposalQueued"
    )
    topic = Web3.keccak(text=abi_to_signature(entry))  # type: ignore[arg-type]
    spam = (topic, b"\x01" * 32, word(governed.owner), bytes(320), 100)
    governed.send(governed.stranger, spammer, "spam", *spam)
    second = governed.propose(governed.image())
    governed.send(governed.stranger, spammer, "spam", *spam)

    found = OperatorReader(
        ChainClient(governed.chain.rpc_url, block_tag="latest"), governed.operator.address
    ).proposals()

    assert [bytes(each.id) for each in found] == [first.id, second.id]


def test_a17_only_the_owner_adds_to_the_list(governed: GovernedWorld) -> None:
    """A stranger's proposal fails and leaves no event and no entry."""
    content = governed.content([governed.compose()])

    refusal = governed.refused(governed.stranger, governed.operator, "propose", content)

    assert refusal == ("OwnableUnauthorizedAccount", governed.stranger)
    assert governed.operator.functions.proposalCount().call() == 0


def test_a17_a_proposal_among_many_is_found_without_events(governed: GovernedWorld) -> None:
    """An owner who floods the list hides nothing: the contract lists every id, and each can be stopped by it."""
    decoy, evil = governed.content([governed.compose()]), governed.content([governed.compose(b"\xee" * 32)])
    for number in range(30):
        governed.rpc(
            "eth_sendTransaction",
            {
                "from": governed.owner,
                "to": governed.operator.address,
                "data": governed.operator.encode_abi("propose", args=[evil if number == 17 else decoy]),
                "gas": hex(10**6),
            },
        )
    governed.rpc("evm_mine")

    ids = [bytes(each) for each in governed.operator.functions.proposalIds(0, 100).call()]

    wanted = proposal_id(31337, governed.operator.address, 17, evil)
    assert (len(ids), ids[17]) == (30, wanted)
    governed.send(governed.guardian, governed.operator, "cancel", wanted)


def test_a17_one_denial_stops_a_flood_of_the_same(governed: GovernedWorld) -> None:
    """Whoever proposes the same a dozen times is stopped by one transaction, not by a dozen."""
    flood = [governed.propose(governed.compose(b"\xee" * 32)) for _ in range(12)]

    governed.deny(governed.compose(b"\xee" * 32))

    refusals = {governed.execution_refused(each, at=flood[-1].ready_at + i)[0] for i, each in enumerate(flood)}
    assert refusals == {"DeniedSince"}
