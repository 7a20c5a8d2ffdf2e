"""What asking and governing costs, to the unit: a change is paid by every owner and every key release.

`pytest tests/contracts/test_gas.py --rewrite-gas` (`make snapshots`) writes what is measured into gas.json. A
transaction's own 21000 and its call data are part of it. What it may cost at most is the test of P26.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from dstack.chain.action_data import AppVersion, RegisterSet
from dstack.chain.bindings import encode_call
from dstack.chain.operator import (
    Action,
    Kind,
    Proposal,
    cancel_call,
    deny_call,
    execute_call,
    proposal_in,
    propose_call,
)
from dstack.chain.tx import Call
from dstack.devnet.anvil import Anvil
from dstack.policy import Granted
from dstack.values import ComposeHash, Register
from tests.chain_world import COMPOSE, DEVICE, KMS_MR, OS_IMAGE, ChainWorld, chain_world

OTHER_COMPOSE = ComposeHash(b"\xc2" * 32)
NEXT_COMPOSE = ComposeHash(b"\xc1" * 32)
SUNSET = datetime(2100, 1, 1, tzinfo=UTC)
REGISTERS = RegisterSet(*(Register(bytes([number]) * 48) for number in range(1, 6)))


class KnownAccounts(Anvil):
    """A chain whose accounts, and so all addresses, are the same in every run: zero bytes in call data cost less."""

    def funded_account(self) -> LocalAccount:
        """The next of a fixed row of keys, with money."""
        self.numbers = getattr(self, "numbers", count())
        account: LocalAccount = Account.from_key(keccak(text=f"gas {next(self.numbers)}"))
        self.web3.provider.make_request("anvil_setBalance", [account.address, hex(10**21)])
        return account


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, int]]:
    """Gas of each thing that people do often, in the order in which an app lives."""
    with KnownAccounts.start() as chain:
        yield measure(chain_world(chain))


def measure(world: ChainWorld) -> dict[str, int]:
    """Let an app live: a compose hash, three versions, questions, and what takes it back."""
    gas = {}
    on_kms = [world.on_kms(Kind.OS_IMAGE, OS_IMAGE), world.on_kms(Kind.KMS_AGGREGATED_MR, KMS_MR)]
    world.grant(*on_kms, world.on_kms(Kind.KMS_DEVICE, DEVICE), world.on_app(Kind.DEVICE, DEVICE))
    for name, action in (
        ("a compose hash", world.on_app(Kind.COMPOSE_HASH, OTHER_COMPOSE)),
        ("the first version", version_action(world, AppVersion(1, COMPOSE, (OS_IMAGE,)))),
        ("the next version", version_action(world, AppVersion(2, NEXT_COMPOSE, (OS_IMAGE,), (), 1, SUNSET))),
        ("a version with registers", version_action(world, AppVersion(3, NEXT_COMPOSE, (OS_IMAGE,), (REGISTERS,)))),
    ):
        gas[f"propose {name}"], proposal = propose(world, action)
        world.warp_to(int(proposal.ready_at.timestamp()))
        gas[f"execute {name}"] = world.call(execute_call(proposal), world.stranger)["gasUsed"]
    for name, function in (("an app", "isAppAllowed"), ("a KMS", "isKmsAllowed")):
        question = encode_call("KmsAuth", function, world.boot().abi_tuple())
        gas[f"ask about {name}"] = world.call(Call(world.kms_auth.address, question))["gasUsed"]
    assert isinstance(world.reader().authorize_app(world.boot()), Granted)
    _, proposal = propose(world, world.on_app(Kind.DEVICE, b"\xdd" * 32))
    gas["cancel a proposal"] = world.call(cancel_call(proposal), world.guardian)["gasUsed"]
    for name, denied in (
        ("a compose hash", world.on_app(Kind.COMPOSE_HASH, COMPOSE)),
        ("an OS image", world.on_kms(Kind.OS_IMAGE, OS_IMAGE)),
        ("an app", world.on_kms(Kind.APP, world.app_id)),
    ):
        # In one and the same second the time of the last denial would be written anew for less.
        world.warp(timedelta(seconds=60))
        gas[f"deny {name}"] = world.call(deny_call(world.deployment.operator, [denied]), world.guardian)["gasUsed"]
    return gas


def propose(world: ChainWorld, action: Action) -> tuple[int, Proposal]:
    """The owner announces one action; the gas of it, and the proposal."""
    receipt = world.call(propose_call(world.deployment.operator, world.content(action)))
    return receipt["gasUsed"], proposal_in(receipt, chain_id=31337, operator=world.deployment.operator)


def version_action(world: ChainWorld, version: AppVersion) -> Action:
    """The action that grants this version."""
    return Action(Kind.VERSION, world.app_auth.address, version.encode())


def test_gas_is_the_committed_one(measured: dict[str, int], pytestconfig: pytest.Config) -> None:
    """Each thing costs exactly what the snapshot says."""
    snapshot = Path(__file__).with_name("gas.json")
    if pytestconfig.getoption("rewrite_gas"):
        snapshot.write_text(json.dumps(measured, indent=1) + "\n")

    assert measured == json.loads(snapshot.read_text())
