"""UpgradeOperator's deny path: at once, by owner or guardian, from a closed list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from web3 import Web3

from dstack.chain.operator import Action, Kind, deny_call, execute_call
from dstack.errors import RefusedError
from dstack.policy import Denied, Granted, Rule
from tests.chain_world import COMPOSE, DELAY, DEVICE, KMS_MR, OS_IMAGE, ChainWorld, events_of

ON = (1).to_bytes(32, "big")


@dataclass(frozen=True)
class Tolerates:
    """Asks whether an outdated TCB is tolerated."""

    getter: Any

    def call(self) -> bool:
        """Whatever the time."""
        return bool(self.getter.call())


def grant_of(world: ChainWorld, action: Action) -> Action:
    """What a denial of *action* takes back: the same, but a toleration has an end."""
    if action.kind is not Kind.OUTDATED_TCB:
        return action
    until = world.w3.eth.get_block("latest")["timestamp"] + 60 * 86400
    return Action(action.kind, action.target, until.to_bytes(32, "big"))


def deniable(world: ChainWorld) -> dict[Kind, tuple[Action, Any, bool]]:
    """For each kind that can be denied and granted: the action, its getter, and the getter's value when granted."""
    app, kms = world.app_auth.functions, world.kms_auth.functions
    return {
        Kind.COMPOSE_HASH: (world.on_app(Kind.COMPOSE_HASH, COMPOSE), app.allowedComposeHashes(COMPOSE), True),
        Kind.DEVICE: (world.on_app(Kind.DEVICE, DEVICE), app.allowedDeviceIds(DEVICE), True),
        Kind.ANY_DEVICE: (world.on_app(Kind.ANY_DEVICE, ON), app.allowAnyDevice(), True),
        Kind.OUTDATED_TCB: (world.on_app(Kind.OUTDATED_TCB, ON), Tolerates(app.outdatedTcbToleratedUntil()), True),
        Kind.OS_IMAGE: (world.on_kms(Kind.OS_IMAGE, OS_IMAGE), kms.allowedOsImages(OS_IMAGE), True),
        Kind.KMS_AGGREGATED_MR: (
            world.on_kms(Kind.KMS_AGGREGATED_MR, KMS_MR),
            kms.kmsAllowedAggregatedMrs(KMS_MR),
            True,
        ),
        Kind.KMS_DEVICE: (world.on_kms(Kind.KMS_DEVICE, DEVICE), kms.kmsAllowedDeviceIds(DEVICE), True),
    }


DENIABLE = [
    Kind.COMPOSE_HASH,
    Kind.DEVICE,
    Kind.ANY_DEVICE,
    Kind.OUTDATED_TCB,
    Kind.OS_IMAGE,
    Kind.KMS_AGGREGATED_MR,
    Kind.KMS_DEVICE,
]


def subject_of(action: Action) -> bytes:
    """What denials of the same share."""
    return bytes(32) if action.kind is Kind.OUTDATED_TCB else action.data


def deny(world: ChainWorld, *actions: Action, by: LocalAccount | None = None) -> Any:
    """The guardian, or *by*, takes back."""
    return world.call(deny_call(world.deployment.operator, actions), by or world.guardian)


@pytest.mark.parametrize("kind", DENIABLE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("who", ["owner", "guardian"])
def test_each_kind_of_grant_is_taken_back_at_once(world: ChainWorld, kind: Kind, who: str) -> None:
    """Owner or guardian undo it in one transaction, and the event says who and what."""
    action, getter, granted = deniable(world)[kind]
    world.grant(grant_of(world, action))
    before = getter.call()

    receipt = deny(world, action, by=getattr(world, who))

    assert (before, getter.call()) == (granted, not granted)
    by = getattr(world, who).address
    assert events_of(world.operator, receipt) == [
        (
            "ActionDenied",
            {"by": by, "target": action.target, "subject": subject_of(action), "kind": kind, "data": action.data},
        )
    ]


@pytest.mark.parametrize("kind", DENIABLE, ids=lambda kind: kind.name)
def test_a_denial_stops_what_was_proposed_of_it(world: ChainWorld, kind: Kind) -> None:
    """Nobody can execute a grant back into force that was proposed before the denial; a new proposal can."""
    action, getter, granted = deniable(world)[kind]
    stale = world.propose(grant_of(world, action))
    deny(world, action)
    world.warp(DELAY)

    with pytest.raises(RefusedError, match=r"denied at [0-9]+, after or when it was proposed"):
        world.call(execute_call(stale))

    world.grant(grant_of(world, action))
    assert getter.call() == granted


def test_a_denial_stops_the_whole_batch(world: ChainWorld) -> None:
    """A proposal with one denied action is not executed in part."""
    stale = world.propose(world.on_kms(Kind.OS_IMAGE, OS_IMAGE), world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    deny(world, world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    world.warp(DELAY)

    with pytest.raises(RefusedError, match=f"ComposeHash 0x{COMPOSE.hex()} of {world.app_auth.address}: denied at"):
        world.call(execute_call(stale))

    assert not world.kms_auth.functions.allowedOsImages(OS_IMAGE).call()


def test_a_denial_concerns_exactly_its_value_and_target(world: ChainWorld) -> None:
    """Another value, and the same value of another kind, go their way."""
    other = world.propose(
        world.on_app(Kind.COMPOSE_HASH, b"\x01" * 32),
        world.on_app(Kind.DEVICE, COMPOSE),
        world.on_kms(Kind.OS_IMAGE, COMPOSE),
    )
    deny(world, world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    world.warp(DELAY)

    world.call(execute_call(other))

    assert world.app_auth.functions.allowedComposeHashes(b"\x01" * 32).call()


def test_a_denial_in_the_block_of_the_proposal_wins(world: ChainWorld) -> None:
    """Inside one block deny beats allow, whichever came first."""
    action = world.on_app(Kind.COMPOSE_HASH, COMPOSE)
    denied_at = world.w3.eth.get_block(deny(world, action)["blockNumber"])["timestamp"]
    world.w3.provider.make_request("evm_setNextBlockTimestamp", [denied_at])
    proposal = world.propose(action)
    world.warp(DELAY)

    assert world.operator.functions.deniedAt(action.abi_tuple()).call() == denied_at
    assert world.operator.functions.proposal(proposal.id).call()[1] == denied_at
    with pytest.raises(RefusedError, match=f"denied at {denied_at}"):
        world.call(execute_call(proposal))


def test_a_denied_app_gets_no_keys(world: ChainWorld) -> None:
    """Through KmsAuth: allowed, then denied by the guardian, by the rule that the denial is about."""
    world.grant(
        world.on_kms(Kind.OS_IMAGE, OS_IMAGE),
        world.on_app(Kind.COMPOSE_HASH, COMPOSE),
        world.on_app(Kind.DEVICE, DEVICE),
    )
    before = world.reader().authorize_app(world.boot())

    deny(world, world.on_app(Kind.COMPOSE_HASH, COMPOSE))

    after = world.reader().authorize_app(world.boot())
    assert isinstance(before, Granted)
    assert after == Denied(Rule.COMPOSE_HASH, COMPOSE.hex(), "Compose hash not allowed", after.block)


def test_several_grants_are_taken_back_together(world: ChainWorld) -> None:
    """One transaction, one event each, in order."""
    actions = [action for action, _, _ in deniable(world).values()]
    world.grant(*(grant_of(world, action) for action in actions))

    receipt = deny(world, *actions)

    assert [arguments["kind"] for _, arguments in events_of(world.operator, receipt)] == DENIABLE
    assert [getter.call() for _, getter, _ in deniable(world).values()] == [
        not granted for _, _, granted in deniable(world).values()
    ]


@pytest.mark.parametrize("name", ["app_auth", "kms_auth"])
def test_contract_upgrades_are_given_up_for_good(world: ChainWorld, name: str) -> None:
    """The owner can end code changes of an app or of KmsAuth; the operator itself then cannot make one."""
    contract = getattr(world, name)
    code = bytes.fromhex(world.deployment.app_implementation[2:])
    pending = world.propose(Action.of(Kind.IMPLEMENTATION_UPGRADE, contract.address, code))

    receipt = deny(world, Action.switch(Kind.CONTRACT_UPGRADES, contract.address), by=world.owner)

    assert [name for name, _ in events_of(contract, receipt)] == ["UpgradesDisabled", "PolicyChanged"]
    assert contract.functions.upgradesDisabled().call()
    world.warp_to(int(pending.ready_at.timestamp()))
    with pytest.raises(RefusedError, match="Upgrades are permanently disabled"):
        world.call(execute_call(pending))


def test_the_guardian_denies_nothing_for_good(world: ChainWorld) -> None:
    """What could never be granted again is the owner's to give up."""
    with pytest.raises(RefusedError, match="ContractUpgrades: want the owner"):
        deny(world, world.on_app(Kind.CONTRACT_UPGRADES, ON))


@pytest.mark.parametrize("kind", [Kind.GATEWAY_APP_ID, Kind.APP_IMPLEMENTATION, Kind.GUARDIAN])
def test_what_has_no_opposite_cannot_be_denied(world: ChainWorld, kind: Kind) -> None:
    """Gateway, implementation and guardian are only ever replaced, by the grant path."""
    value = bytes.fromhex(world.own_app_auth.address[2:])
    target = world.operator.address if kind is Kind.GUARDIAN else world.kms_auth.address

    with pytest.raises(RefusedError, match="cannot be denied"):
        deny(world, Action.of(kind, target, value))


def test_the_highest_address_can_be_denied_and_nothing_above(world: ChainWorld) -> None:
    """An app is any address; a word that is none is malformed."""
    highest = (2**160 - 1).to_bytes(32, "big")

    deny(world, world.on_kms(Kind.APP, highest))
    frozen = world.kms_auth.functions.frozenUntil(Web3.to_checksum_address("ff" * 20)).call()
    with pytest.raises(RefusedError, match="App: "):
        deny(world, world.on_kms(Kind.APP, (2**160).to_bytes(32, "big")))

    assert frozen == world.w3.eth.get_block("latest")["timestamp"] + 7 * 24 * 3600


def test_a_stranger_cannot_deny(world: ChainWorld) -> None:
    """Only owner and guardian take back."""
    with pytest.raises(RefusedError, match=f"{world.stranger.address}: want the owner or the guardian"):
        deny(world, world.on_app(Kind.COMPOSE_HASH, COMPOSE), by=world.stranger)
