"""UpgradeOperator, deployed: delays, roles, and no power that is left with anybody else."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dstack.chain.client import ChainClient
from dstack.chain.deploy import deploy_contract, deploy_system
from dstack.chain.operator import (
    Action,
    Delays,
    Kind,
    proposal_in,
    propose_call,
)
from dstack.chain.operator_reader import OperatorReader
from dstack.chain.proposing import current_content
from dstack.chain.tx import Call
from dstack.errors import RefusedError
from dstack.policy import Denied, Rule
from tests.chain_world import DELAY, OS_IMAGE, ChainWorld


@pytest.mark.parametrize("delay", [timedelta(), DELAY - timedelta(seconds=1), timedelta(days=365, seconds=1)])
@pytest.mark.parametrize("which", ["policy", "roles", "upgrades"])
def test_the_delay_is_never_below_48_hours(world: ChainWorld, delay: timedelta, which: str) -> None:
    """An operator with a shorter delay of any class, or one of more than a year, cannot be deployed."""
    accounts = world.owner.address, world.guardian.address
    year = timedelta(days=365)
    delays = replace(Delays(DELAY, DELAY, year), **{which: delay})

    with pytest.raises(RefusedError, match=f"want 172800 to 31536000 seconds, got {int(delay.total_seconds())}"):
        deploy_system(world.w3, world.owner, owner=accounts[0], guardian=accounts[1], delays=delays)


def test_upgrades_wait_longest(world: ChainWorld) -> None:
    """An operator in which anything waits longer than new code cannot be deployed."""
    accounts = world.owner.address, world.guardian.address
    delays = Delays(policy=DELAY, roles=timedelta(days=8), upgrades=timedelta(days=7))

    with pytest.raises(RefusedError, match="want that of upgrades longest, got 0, 691200 and 604800 seconds"):
        deploy_system(world.w3, world.owner, owner=accounts[0], guardian=accounts[1], delays=delays)


def test_a_longer_delay_holds(world: ChainWorld) -> None:
    """An operator deployed with a week makes its proposals wait a week."""
    week = timedelta(days=7)
    delays = Delays(week, week, week)
    accounts = world.owner.address, world.guardian.address

    slow = deploy_system(world.w3, world.owner, owner=accounts[0], guardian=accounts[1], delays=delays)

    content = current_content(world.w3, slow.operator, [Action.of(Kind.OS_IMAGE, slow.kms_auth, OS_IMAGE)], "")
    receipt = world.call(propose_call(slow.operator, content))
    proposal = proposal_in(receipt, chain_id=31337, operator=slow.operator)
    proposed_at = world.w3.eth.get_block(receipt["blockNumber"])["timestamp"]
    asks = OperatorReader(ChainClient(world.chain.rpc_url, block_tag="latest"), slow.operator)
    assert (asks.delays(), asks.guardian(), asks.owner()) == (delays, accounts[1], accounts[0])
    assert proposal.ready_at == datetime.fromtimestamp(proposed_at, UTC) + week


def test_an_operator_has_owner_and_guardian(world: ChainWorld) -> None:
    """Neither may be the zero address."""
    nobody, delays = "0x" + "00" * 20, Delays(DELAY, DELAY, DELAY).abi_tuple()

    with pytest.raises(RefusedError, match="guardian: want an account"):
        deploy_contract(world.w3, world.owner, "UpgradeOperator", world.owner.address, nobody, delays)
    with pytest.raises(RefusedError, match="owner: want an account"):
        deploy_contract(world.w3, world.owner, "UpgradeOperator", nobody, world.owner.address, delays)


def test_the_deployer_keeps_no_power(world: ChainWorld) -> None:
    """The operator owns KmsAuth and the app from the first block on, and nothing is allowed yet."""
    owners = [contract.functions.owner().call() for contract in (world.kms_auth, world.app_auth)]
    boot = world.boot()

    answers = [world.reader().authorize_app(boot), world.reader().authorize_kms(boot)]

    assert owners == [world.deployment.operator] * 2
    assert [answer.rule for answer in answers if isinstance(answer, Denied)] == [Rule.OS_IMAGE, Rule.OS_IMAGE]


def test_no_value_and_no_unknown_call_is_taken(world: ChainWorld) -> None:
    """The operator has neither a fallback nor a way to receive ETH."""
    for data in (b"", bytes.fromhex("deadbeef")):
        with pytest.raises(RefusedError, match="refused without a reason"):
            world.call(Call(world.deployment.operator, data))
