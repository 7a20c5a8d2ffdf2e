"""UpgradeOperator, propose: who may, what is announced, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from web3 import Web3

from dstack.chain.bindings import encode_call
from dstack.chain.operator import (
    Action,
    Kind,
    Proposal,
    State,
    cancel_call,
    deny_call,
    execute_call,
    proposal_id,
    proposal_in,
    propose_call,
)
from dstack.errors import RefusedError
from tests.chain_world import COMPOSE, DELAY, OS_IMAGE, WINDOW, ChainWorld, state_of

ON = (1).to_bytes(32, "big")


def test_a_proposal_announces_its_whole_content(world: ChainWorld) -> None:
    """The event holds who, what, where to read more, and both times; its id is the digest of it."""
    actions = (world.on_kms(Kind.OS_IMAGE, OS_IMAGE), world.on_app(Kind.COMPOSE_HASH, COMPOSE))

    content = world.content(*actions)
    receipt = world.call(propose_call(world.deployment.operator, content))

    proposed_at = datetime.fromtimestamp(world.w3.eth.get_block(receipt["blockNumber"])["timestamp"], UTC)
    assert proposal_in(receipt, chain_id=31337, operator=world.deployment.operator) == Proposal(
        operator=world.deployment.operator,
        id=proposal_id(31337, world.deployment.operator, 0, content),
        by=world.owner.address,
        nonce=0,
        content=content,
        ready_at=proposed_at + DELAY,
        expires_at=proposed_at + DELAY + WINDOW,
    )


def test_equal_content_makes_two_proposals(world: ChainWorld) -> None:
    """Cancelling one of two equal proposals leaves the other; ids are never reused."""
    action = world.on_app(Kind.COMPOSE_HASH, COMPOSE)
    first, second = world.propose(action), world.propose(action)

    world.call(cancel_call(first))
    world.warp(DELAY)
    world.call(execute_call(second))

    assert first.id != second.id
    assert (state_of(world, first), state_of(world, second)) == (State.CANCELLED, State.EXECUTED)


def test_contract_upgrades_cannot_be_granted(world: ChainWorld) -> None:
    """What was given up for good has no way back."""
    with pytest.raises(RefusedError, match="ContractUpgrades can only be denied"):
        world.propose(world.on_app(Kind.CONTRACT_UPGRADES, ON))


def test_only_the_owner_proposes(world: ChainWorld) -> None:
    """Neither the guardian nor a stranger can begin a grant."""
    call = propose_call(world.deployment.operator, world.content(world.on_app(Kind.COMPOSE_HASH, COMPOSE)))

    for account in (world.guardian, world.stranger):
        with pytest.raises(RefusedError, match=f"{account.address}: want the owner"):
            world.call(call, account)


@pytest.mark.parametrize("count", [0, 17])
def test_the_number_of_actions_is_bounded(world: ChainWorld, count: int) -> None:
    """An empty list, and one too many, are refused, in a proposal and in a denial."""
    actions = [world.on_app(Kind.COMPOSE_HASH, COMPOSE)] * count
    operator, content = world.deployment.operator, world.content(*actions)

    for call in (propose_call(operator, content), deny_call(operator, actions)):
        with pytest.raises(RefusedError, match=f"actions: want 1 to 16, got {count}"):
            world.call(call)


MALFORMED = [
    (Kind.COMPOSE_HASH, bytes(32)),
    (Kind.DEVICE, bytes(32)),
    (Kind.ANY_DEVICE, bytes(32)),
    (Kind.ANY_DEVICE, (2).to_bytes(32, "big")),
    (Kind.OUTDATED_TCB, bytes(32)),
    (Kind.OUTDATED_TCB, b"\x01" * 32),
    (Kind.OS_IMAGE, bytes(32)),
    (Kind.KMS_AGGREGATED_MR, bytes(32)),
    (Kind.KMS_DEVICE, bytes(32)),
    (Kind.GATEWAY_APP_ID, bytes(32)),
    (Kind.GATEWAY_APP_ID, b"\x01" * 32),
    (Kind.APP_IMPLEMENTATION, b"\x01" * 20),
]


@pytest.mark.parametrize(("kind", "value"), MALFORMED)
def test_malformed_values_are_refused(world: ChainWorld, kind: Kind, value: bytes) -> None:
    """Zero, a switch that is not 1, more than an address, and an implementation without code are refused."""
    target = world.on_app if kind <= Kind.OUTDATED_TCB else world.on_kms

    with pytest.raises(RefusedError, match="is zero or not of the form wanted"):
        world.propose(target(kind, value))


@pytest.mark.parametrize("value", [bytes(32), b"\x01" * 32])
def test_a_malformed_guardian_is_refused(world: ChainWorld, value: bytes) -> None:
    """There is always a guardian, and it is an address."""
    with pytest.raises(RefusedError, match="is zero or not of the form wanted"):
        world.propose(Action.of(Kind.GUARDIAN, world.operator.address, value))


def test_targets_must_be_governed(world: ChainWorld) -> None:
    """A contract of another owner, an account without code, and a foreign operator are refused, whatever the path."""
    foreign = [
        Action.of(Kind.COMPOSE_HASH, world.own_app_auth.address, COMPOSE),
        Action.of(Kind.COMPOSE_HASH, world.stranger.address, COMPOSE),
        Action.of(Kind.GUARDIAN, world.kms_auth.address, bytes.fromhex(world.stranger.address[2:])),
    ]

    for action in foreign:
        operator = world.deployment.operator
        for call in (propose_call(operator, world.content(action)), deny_call(operator, [action])):
            with pytest.raises(RefusedError, match="want a contract that this operator owns"):
                world.call(call)


def test_signers_can_ask_the_contract_for_the_id(world: ChainWorld) -> None:
    """The contract's own digest of content is the one computed on a machine without chain."""
    content = world.content(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    question = encode_call("UpgradeOperator", "proposalId", 7, content.abi_tuple())

    answer = world.w3.eth.call({"to": world.deployment.operator, "data": Web3.to_hex(question)})

    assert bytes(answer) == proposal_id(31337, world.deployment.operator, 7, content)
