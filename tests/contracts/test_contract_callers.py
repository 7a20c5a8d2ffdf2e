"""Who acted, when a contract did: events and rules look at the caller, never at who signed the transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from eth_typing import ChecksumAddress
from web3 import Web3
from web3.contract import Contract
from web3.types import TxReceipt

from dstack.chain.bindings import contract_at
from dstack.chain.deploy import DEFAULT_DELAYS, deploy_contract
from dstack.chain.operator import (
    Action,
    Kind,
    agree_to_rollback_call,
    cancel_call,
    deny_call,
    execute_call,
    proposal_in,
    propose_call,
    roll_back_call,
)
from dstack.chain.proposing import current_content
from dstack.chain.tx import Call
from tests.chain_world import COMPOSE, DEVICE, KMS_MR, OS_IMAGE, URI, ChainWorld, events_of

# Calls the address in the first 20 bytes of its call data with the rest of it, and fails if that fails:
# size := calldatasize - 20; calldatacopy(0, 20, size); call(gas, calldataload(0) >> 96, 0, 0, size, 0, 0)
RELAY = bytes.fromhex("601436038060145f375f5f825f5f5f3560601c5af1" + "601b57" + "5f5ffd" + "5b00")


@dataclass(frozen=True)
class Relay:
    """A contract that does what `world.owner` sends it."""

    world: ChainWorld
    address: ChecksumAddress

    def call(self, call: Call) -> TxReceipt:
        """Have the relay make this call."""
        assert call.to is not None
        return self.world.call(Call(self.address, bytes.fromhex(call.to[2:]) + call.data))

    def send(self, contract: Contract, function: str, *arguments: Any) -> TxReceipt:
        """Have the relay call *function*."""
        return self.call(Call(contract.address, Web3.to_bytes(hexstr=contract.encode_abi(function, args=arguments))))


@pytest.fixture
def relay(world: ChainWorld) -> Relay:
    """A relay that nobody has given any role yet."""
    return Relay(world, world.place_code(RELAY))


def actors(contract: Contract, receipt: TxReceipt) -> set[str]:
    """Everybody whom the events of *contract* name as the one who acted."""
    names = ("actor", "by", "deployer")
    return {arguments[name] for _, arguments in events_of(contract, receipt) for name in names if name in arguments}


KMS_CALLS: list[tuple[str, list[Any]]] = [
    ("setKmsInfo", [(b"k256", b"ca", b"quote", b"log")]),
    ("setKmsQuote", [b"quote"]),
    ("setKmsEventlog", [b"log"]),
    ("setGatewayAppId", ["0xgateway"]),
    ("setAppImplementation", ["0x" + "22" * 20]),
    ("addKmsAggregatedMr", [KMS_MR]),
    ("removeKmsAggregatedMr", [KMS_MR]),
    ("addKmsDevice", [DEVICE]),
    ("removeKmsDevice", [DEVICE]),
    ("addOsImageHash", [OS_IMAGE]),
    ("removeOsImageHash", [OS_IMAGE]),
    ("registerApp", ["0x" + "33" * 20]),
    ("disableUpgrades", []),
]
APP_CALLS: list[tuple[str, list[Any]]] = [
    ("addComposeHash", [COMPOSE]),
    ("removeComposeHash", [COMPOSE]),
    ("addDevice", [DEVICE]),
    ("removeDevice", [DEVICE]),
    ("setAllowAnyDevice", [True]),
    ("setRequireTcbUpToDate", [True]),
    ("disableUpgrades", []),
    ("freezeForGood", []),
]


@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [("own_kms_auth", *call) for call in KMS_CALLS] + [("own_app_auth", *call) for call in APP_CALLS],
)
def test_policy_events_name_the_owner_that_is_a_contract(
    world: ChainWorld, relay: Relay, name: str, function: str, arguments: list[Any]
) -> None:
    """What a contract changes as owner is announced under its name."""
    contract = getattr(world, name)
    world.send(world.owner, contract, "transferOwnership", relay.address)
    relay.send(contract, "acceptOwnership")

    receipt = relay.send(contract, function, *arguments)

    assert actors(contract, receipt) == {relay.address}


@pytest.mark.parametrize("name", ["own_kms_auth", "own_app_auth"])
def test_an_upgrade_names_the_owner_that_is_a_contract(world: ChainWorld, relay: Relay, name: str) -> None:
    """New code is announced under the name of the contract that put it there."""
    contract = getattr(world, name)
    implementation = deploy_contract(world.w3, world.stranger, "KmsAuth" if name == "own_kms_auth" else "AppAuth")
    world.send(world.owner, contract, "transferOwnership", relay.address)
    relay.send(contract, "acceptOwnership")

    receipt = relay.send(contract, "upgradeToAndCall", implementation, b"")

    assert actors(contract, receipt) == {relay.address}


def test_a_new_app_names_the_contract_that_had_it_made(world: ChainWorld, relay: Relay) -> None:
    """The factory announces its caller."""
    function = "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"

    receipt = relay.send(world.kms_auth, function, world.owner.address, False, True, False, DEVICE, COMPOSE)

    assert actors(world.kms_auth, receipt) == {relay.address}


def test_an_operator_names_the_contract_that_acts(world: ChainWorld, relay: Relay) -> None:
    """Owner and guardian can be contracts: each step of a proposal, and a denial, is announced under their name."""
    guard = Relay(world, world.place_code(RELAY))
    operator = deploy_contract(
        world.w3, world.stranger, "UpgradeOperator", relay.address, guard.address, DEFAULT_DELAYS.abi_tuple()
    )
    announced = contract_at(world.w3, "UpgradeOperator", operator)
    function = "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"
    made = relay.send(world.kms_auth, function, operator, False, True, False, DEVICE, bytes(32))
    app = dict(events_of(world.kms_auth, made))["AppDeployedViaFactory"]["appId"]
    grant, undo = Action.of(Kind.COMPOSE_HASH, app, COMPOSE), Action.of(Kind.DEVICE, app, b"\x01" * 32)
    content = current_content(world.w3, operator, [grant], URI, rollback=[undo])

    for first, second in ((relay, guard), (guard, relay)):
        proposed = relay.call(propose_call(operator, content))
        proposal = proposal_in(proposed, chain_id=31337, operator=operator)
        world.warp_to(int(proposal.ready_at.timestamp()))
        executed = first.call(execute_call(proposal))
        agreed = first.call(agree_to_rollback_call(proposal))
        rolled_back = second.call(roll_back_call(proposal))
        denied = second.call(deny_call(operator, [grant]))
        steps = (proposed, executed, agreed, rolled_back, denied)
        assert [actors(announced, step) for step in steps] == [
            {who.address} for who in (relay, first, first, second, second)
        ]
        world.warp(timedelta(seconds=1))  # what is proposed in the second of a denial is stopped by it
        again = proposal_in(relay.call(propose_call(operator, content)), chain_id=31337, operator=operator)
        assert actors(announced, first.call(cancel_call(again))) == {first.address}
