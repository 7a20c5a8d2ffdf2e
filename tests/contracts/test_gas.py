"""What asking and governing costs; a regression here is paid by every owner and every key release."""

from __future__ import annotations

from web3 import Web3

from dstack.chain.bindings import encode_call
from dstack.chain.operator import Kind, execute_call, proposal_in, propose_call
from dstack.policy import Granted
from tests.chain_world import COMPOSE, DELAY, DEVICE, OS_IMAGE, ChainWorld


def test_costs_stay_below_their_goals(world: ChainWorld) -> None:
    """A proposal stays below 200k gas, its execution below 120k, a question through KmsAuth below 60k."""
    world.grant(world.on_kms(Kind.OS_IMAGE, OS_IMAGE), world.on_app(Kind.DEVICE, DEVICE))
    action = world.on_app(Kind.COMPOSE_HASH, COMPOSE)
    proposed = world.call(propose_call(world.deployment.operator, world.content(action)))
    proposal = proposal_in(proposed, chain_id=31337, operator=world.deployment.operator)
    world.warp(DELAY)
    executed = world.call(execute_call(proposal))
    question = Web3.to_hex(encode_call("KmsAuth", "isAppAllowed", world.boot().abi_tuple()))
    asked = world.w3.eth.estimate_gas({"to": world.kms_auth.address, "data": question})

    assert isinstance(world.reader().authorize_app(world.boot()), Granted)
    assert proposed["gasUsed"] < 200_000
    assert executed["gasUsed"] < 120_000
    assert asked < 60_000
