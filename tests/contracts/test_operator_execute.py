"""UpgradeOperator, execute: anybody, after the delay, within the window, once; each kind has its effect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from dstack.chain.action_data import Genesis, KmsInfo
from dstack.chain.operator import (
    Action,
    Kind,
    State,
    execute_call,
)
from dstack.errors import RefusedError
from dstack.policy import Denied, Granted, Rule
from dstack.values import Digest32
from tests.chain_world import (
    COMPOSE,
    DELAY,
    DEVICE,
    KMS_MR,
    OS_IMAGE,
    URI,
    WINDOW,
    ChainWorld,
    events_of,
    operator_reader,
    state_of,
)

ON = (1).to_bytes(32, "big")


GATEWAY = bytes.fromhex("9a7e" * 10)


def test_nothing_is_allowed_before_48_hours_and_a_public_event(world: ChainWorld) -> None:
    """The whole way of one app: denied at first, denied one second early, allowed after execution."""
    answers = [world.reader().authorize_app(world.boot())]
    proposal = world.propose(
        world.on_kms(Kind.OS_IMAGE, OS_IMAGE),
        world.on_app(Kind.COMPOSE_HASH, COMPOSE),
        world.on_app(Kind.DEVICE, DEVICE),
    )
    world.warp_to(int(proposal.ready_at.timestamp()) - 1)
    answers.append(world.reader().authorize_app(world.boot()))
    world.warp_to(int(proposal.ready_at.timestamp()))
    answers.append(world.reader().authorize_app(world.boot()))
    world.call(execute_call(proposal), world.stranger)
    answers.append(world.reader().authorize_app(world.boot()))

    assert [answer.rule if isinstance(answer, Denied) else Granted for answer in answers] == [
        Rule.OS_IMAGE,
        Rule.OS_IMAGE,
        Rule.OS_IMAGE,
        Granted,
    ]


@pytest.mark.parametrize(
    ("offset", "want"),
    [
        (timedelta(), State.WAITING),
        (DELAY - timedelta(seconds=1), State.WAITING),
        (DELAY, State.READY),
        (DELAY + WINDOW - timedelta(seconds=1), State.READY),
        (DELAY + WINDOW, State.EXPIRED),
    ],
)
def test_states_change_at_the_exact_second(world: ChainWorld, offset: timedelta, want: State) -> None:
    """Waiting until one second before 48 hours, Ready from then on, Expired from 14 days later on."""
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    proposed_at = proposal.ready_at - DELAY

    if offset:
        world.warp_to(int((proposed_at + offset).timestamp()))

    assert state_of(world, proposal) is want


def test_an_unknown_proposal_is_unset(world: ChainWorld) -> None:
    """An id that nobody proposed has no state and cannot be executed."""
    assert operator_reader(world).state(Digest32(b"\x01" * 32)) is State.UNSET


def test_waiting_expired_and_executed_proposals_cannot_be_executed(world: ChainWorld) -> None:
    """Only Ready ones can; the refusal says where they stand."""
    action = world.on_app(Kind.COMPOSE_HASH, COMPOSE)
    executed, first = world.grant(action), world.propose(action)

    with pytest.raises(RefusedError, match="want it Ready, it is Executed"):
        world.call(execute_call(executed))
    with pytest.raises(RefusedError, match="want it Ready, it is Waiting"):
        world.call(execute_call(first))
    world.warp(DELAY + WINDOW)
    with pytest.raises(RefusedError, match="want it Ready, it is Expired"):
        world.call(execute_call(first))


def test_execution_is_open_to_everybody_and_names_the_sender(world: ChainWorld) -> None:
    """The delay protects, not the caller."""
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    world.warp(DELAY)

    receipt = world.call(execute_call(proposal), world.stranger)

    assert events_of(world.operator, receipt) == [
        ("ProposalExecuted", {"id": proposal.id, "by": world.stranger.address})
    ]
    assert state_of(world, proposal) is State.EXECUTED


@pytest.mark.parametrize("other", ["actions", "uri", "order", "rollback"])
def test_other_content_than_proposed_is_refused(world: ChainWorld, other: str) -> None:
    """A proposal cannot be edited, not even the order of its actions, its uri or what would undo it."""
    actions = (world.on_app(Kind.COMPOSE_HASH, COMPOSE), world.on_app(Kind.DEVICE, DEVICE))
    proposal = world.propose(*actions)
    world.warp(DELAY)
    content = {
        "actions": world.content(actions[0], world.on_app(Kind.DEVICE, COMPOSE)),
        "uri": world.content(*actions, uri=URI + "/other"),
        "order": world.content(*actions[::-1]),
        "rollback": world.content(*actions, rollback=actions),
    }[other]

    with pytest.raises(RefusedError, match="the content given is not the one that was proposed"):
        world.call(execute_call(replace(proposal, content=content)), world.stranger)


def word(number: int) -> bytes:
    """One ABI word."""
    return number.to_bytes(32, "big")


def now(world: ChainWorld) -> int:
    """The time of the newest block."""
    return int(world.w3.eth.get_block("latest")["timestamp"])


@dataclass(frozen=True)
class First:
    """Asks for several values, and leaves away those behind the first few."""

    getter: Any
    count: int

    def call(self) -> list[Any]:
        """Those."""
        return list(self.getter.call()[: self.count])


@dataclass(frozen=True)
class NominatedTo:
    """Asks who was named."""

    getter: Any

    def call(self) -> str:
        """Without the time."""
        account, _ = self.getter.call()
        return str(account)


def effects(world: ChainWorld) -> list[tuple[Action, Any, Any, Any]]:
    """For each kind: the action, the getter that shows its effect, before and after."""
    app, kms = world.app_auth.functions, world.kms_auth.functions
    implementation = bytes.fromhex(world.own_app_auth.address[2:])
    heir, nobody = bytes.fromhex(world.stranger.address[2:]), "0x" + "00" * 20
    until = now(world) + 30 * 86400
    info = KmsInfo(b"\x02" * 33, b"\x04" * 65, b"a quote", b"its event log")
    genesis = Genesis(Digest32(b"\xf1" * 32), Digest32(b"\xe1" * 32))
    genesis_of = world.operator.functions.genesisOf(world.app_auth.address)
    return [
        (world.on_app(Kind.COMPOSE_HASH, COMPOSE), app.allowedComposeHashes(COMPOSE), False, True),
        (world.on_app(Kind.DEVICE, DEVICE), app.allowedDeviceIds(DEVICE), False, True),
        (world.on_app(Kind.ANY_DEVICE, ON), app.allowAnyDevice(), False, True),
        (world.on_app(Kind.OUTDATED_TCB, word(until)), app.outdatedTcbToleratedUntil(), 0, until),
        (world.on_kms(Kind.OS_IMAGE, OS_IMAGE), kms.allowedOsImages(OS_IMAGE), False, True),
        (world.on_kms(Kind.KMS_AGGREGATED_MR, KMS_MR), kms.kmsAllowedAggregatedMrs(KMS_MR), False, True),
        (world.on_kms(Kind.KMS_DEVICE, DEVICE), kms.kmsAllowedDeviceIds(DEVICE), False, True),
        (world.on_kms(Kind.GATEWAY_APP_ID, GATEWAY), kms.gatewayAppId(), "", "0x" + GATEWAY.hex()),
        (
            world.on_kms(Kind.APP_IMPLEMENTATION, implementation),
            kms.appImplementation(),
            world.deployment.app_implementation,
            world.own_app_auth.address,
        ),
        (
            Action.of(Kind.GUARDIAN, world.operator.address, heir),
            NominatedTo(world.operator.functions.nominatedGuardian()),
            nobody,
            world.stranger.address,
        ),
        (
            Action.of(Kind.OWNER, world.operator.address, heir),
            NominatedTo(world.operator.functions.nominatedOwner()),
            nobody,
            world.stranger.address,
        ),
        (
            Action(Kind.DELAY, world.operator.address, word(0) + word(3 * 86400)),
            world.operator.functions.delays(),
            [172800, 172800, 604800],
            [259200, 172800, 604800],
        ),
        (world.on_app(Kind.FREEZE_FOR_GOOD, ON), app.frozenForGood(), False, True),
        (
            Action(Kind.KMS_INFO, world.kms_auth.address, info.encode()),
            kms.kmsInfo(),
            [b"", b"", b"", b""],
            [info.k256_pubkey, info.ca_pubkey, info.quote, info.eventlog],
        ),
        (
            Action(Kind.GENESIS, world.app_auth.address, genesis.encode()),
            First(genesis_of, 2),
            [bytes(32), bytes(32)],
            [genesis.fingerprint, genesis.evidence],
        ),
    ]


ELSEWHERE = {
    Kind.VERSION,
    Kind.SUNSET,
    Kind.APP,
    Kind.FREEZE_RENEWAL,
    Kind.IMPLEMENTATION_UPGRADE,
    Kind.KEY_EPOCH,
    Kind.FORCED_GUARDIAN,
}


GRANTABLE = [kind for kind in Kind if kind is not Kind.CONTRACT_UPGRADES and kind not in ELSEWHERE]


@pytest.mark.parametrize("kind", GRANTABLE, ids=lambda kind: kind.name)
def test_each_kind_of_grant_has_its_effect_and_only_after_execution(world: ChainWorld, kind: Kind) -> None:
    """What is proposed happens on execution, not before."""
    ((action, getter, before, after),) = [effect for effect in effects(world) if effect[0].kind is kind]

    proposal = world.propose(action)
    world.warp_to(int(proposal.ready_at.timestamp()))
    assert getter.call() == before
    world.call(execute_call(proposal))

    assert getter.call() == after


def test_the_gateway_is_read_as_it_was_granted(world: ChainWorld) -> None:
    """The reader gives the gateway's app id in hexadecimal."""
    world.grant(world.on_kms(Kind.GATEWAY_APP_ID, GATEWAY))

    assert world.reader().gateway_app_id() == "0x" + GATEWAY.hex()


def test_the_largest_proposal_can_be_executed(world: ChainWorld) -> None:
    """16 actions and a uri of 512 bytes pass; one byte more does not."""
    actions = [world.on_app(Kind.COMPOSE_HASH, bytes([number] * 32)) for number in range(1, 17)]
    proposal = world.propose(*actions, uri="u" * 512)
    world.warp(DELAY)
    world.call(execute_call(proposal))

    assert all(world.app_auth.functions.allowedComposeHashes(action.data).call() for action in actions)
    with pytest.raises(RefusedError, match="uri: want at most 512 bytes, got 513"):
        world.propose(*actions, uri="u" * 513)


def test_a_batch_is_executed_whole_or_not_at_all(world: ChainWorld) -> None:
    """If one action fails, none has happened, and the proposal stays Ready."""
    fails = Action.of(Kind.COMPOSE_HASH, world.kms_auth.address, COMPOSE)
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE), fails)
    world.warp(DELAY)

    with pytest.raises(RefusedError, match="refused without a reason"):
        world.call(execute_call(proposal))

    assert not world.app_auth.functions.allowedComposeHashes(COMPOSE).call()
    assert state_of(world, proposal) is State.READY
