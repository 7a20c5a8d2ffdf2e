"""P6: id = hash of chain id, contract, nonce, full content and code hashes; never reused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.governed_world import COMPOSE, MIN_DELAY, GovernedWorld, proposal_id


def test_p06_the_id_is_recomputed_without_the_contract(governed: GovernedWorld) -> None:
    """A signer gets the same digest from the words of the interface alone."""
    proposal = governed.propose(governed.compose(), governed.version(7), rollback=[governed.image()])

    assert governed.w3.eth.chain_id == 31337
    assert proposal.id == proposal_id(31337, governed.operator.address, 0, proposal.content)


CHANGES: dict[str, Any] = {
    "kind": lambda c: c._replace(actions=[c.actions[0]._replace(kind=1), *c.actions[1:]]),
    "target": lambda c: c._replace(actions=[c.actions[0]._replace(target="0x" + "11" * 20), *c.actions[1:]]),
    "data": lambda c: c._replace(actions=[c.actions[0]._replace(data=COMPOSE[:-1] + b"\0"), *c.actions[1:]]),
    "order": lambda c: c._replace(actions=c.actions[::-1]),
    "rollback": lambda c: c._replace(rollback=[]),
    "split": lambda c: c._replace(actions=c.actions + c.rollback, rollback=[]),
    "code hashes": lambda c: c._replace(code_hashes=[b"\x01" * 32, *c.code_hashes[1:]]),
    "uri": lambda c: c._replace(uri=c.uri + "/"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_p06_every_part_of_the_content_is_in_the_id(governed: GovernedWorld, change: Any) -> None:
    """Any difference makes another id, in the contract's digest as in ours."""
    content = governed.content([governed.compose(), governed.image()], [governed.compose(b"\x01" * 32)])
    other = change(content)

    ids = [bytes(governed.operator.functions.proposalId(5, each).call()) for each in (content, other)]

    assert ids == [proposal_id(31337, governed.operator.address, 5, each) for each in (content, other)]
    assert ids[0] != ids[1]


def test_p06_chain_contract_and_nonce_are_in_the_id(governed: GovernedWorld) -> None:
    """The same content on another chain, in another operator, or proposed again, has another id."""
    content = governed.content([governed.compose()])
    twin = governed.deploy_ours("UpgradeOperator", governed.owner, governed.guardian, (MIN_DELAY,) * 3)
    ask = governed.operator.functions.proposalId

    ids = [bytes(ask(0, content).call()), bytes(ask(1, content).call())]
    ids.append(bytes(twin.functions.proposalId(0, content).call()))
    governed.rpc("anvil_setChainId", 1)
    try:
        ids.append(bytes(ask(0, content).call()))
    finally:
        governed.rpc("anvil_setChainId", 31337)

    assert ids == [
        proposal_id(31337, governed.operator.address, 0, content),
        proposal_id(31337, governed.operator.address, 1, content),
        proposal_id(31337, twin.address, 0, content),
        proposal_id(1, governed.operator.address, 0, content),
    ]
    assert len(set(ids)) == 4


def test_p06_equal_content_never_has_an_id_twice(governed: GovernedWorld) -> None:
    """Proposed again after cancelling, after executing and meanwhile, it is a proposal of its own each time."""
    proposals = [governed.propose(governed.compose())]
    governed.send(governed.owner, governed.operator, "cancel", proposals[0].id)
    proposals.append(governed.grant(governed.compose()))
    proposals += [governed.propose(governed.compose()), governed.propose(governed.compose())]

    assert [each.id for each in proposals] == [
        proposal_id(31337, governed.operator.address, nonce, proposals[0].content) for nonce in range(4)
    ]
