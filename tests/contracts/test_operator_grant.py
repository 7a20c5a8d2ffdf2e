"""UpgradeOperator's grant path: propose, wait, execute once, inside the window."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from web3 import Web3

from dstack.chain.action_data import Genesis, KmsInfo
from dstack.chain.bindings import encode_call
from dstack.chain.client import ChainClient
from dstack.chain.deploy import deploy_contract, deploy_system
from dstack.chain.operator import (
    Action,
    Delays,
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
from dstack.chain.operator_reader import OperatorReader
from dstack.chain.proposing import current_content
from dstack.chain.tx import Call
from dstack.errors import RefusedError
from dstack.policy import Denied, Granted, Rule
from dstack.values import Digest32
from tests.chain_world import COMPOSE, DELAY, DEVICE, KMS_MR, OS_IMAGE, URI, WINDOW, ChainWorld, events_of, restored

ON = (1).to_bytes(32, "big")
GATEWAY = bytes.fromhex("9a7e" * 10)


def reader(world: ChainWorld) -> OperatorReader:
    """Asks UpgradeOperator at the newest block."""
    return OperatorReader(ChainClient(world.chain.rpc_url, block_tag="latest"), world.deployment.operator)


def state(world: ChainWorld, proposal: Proposal) -> State:
    """Where it stands now."""
    return reader(world).state(proposal.id)


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

    assert state(world, proposal) is want


def test_an_unknown_proposal_is_unset(world: ChainWorld) -> None:
    """An id that nobody proposed has no state and cannot be executed."""
    assert reader(world).state(Digest32(b"\x01" * 32)) is State.UNSET


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
    assert state(world, proposal) is State.EXECUTED


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


def test_equal_content_makes_two_proposals(world: ChainWorld) -> None:
    """Cancelling one of two equal proposals leaves the other; ids are never reused."""
    action = world.on_app(Kind.COMPOSE_HASH, COMPOSE)
    first, second = world.propose(action), world.propose(action)

    world.call(cancel_call(first))
    world.warp(DELAY)
    world.call(execute_call(second))

    assert first.id != second.id
    assert (state(world, first), state(world, second)) == (State.CANCELLED, State.EXECUTED)


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


# Versions, freezes, code, epochs and the guardian's office have files of their own.
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


def test_the_largest_proposal_can_be_executed(world: ChainWorld) -> None:
    """16 actions and a uri of 512 bytes pass; one byte more does not."""
    actions = [world.on_app(Kind.COMPOSE_HASH, bytes([number] * 32)) for number in range(1, 17)]
    proposal = world.propose(*actions, uri="u" * 512)
    world.warp(DELAY)
    world.call(execute_call(proposal))

    assert all(world.app_auth.functions.allowedComposeHashes(action.data).call() for action in actions)
    with pytest.raises(RefusedError, match="uri: want at most 512 bytes, got 513"):
        world.propose(*actions, uri="u" * 513)


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


def test_a_batch_is_executed_whole_or_not_at_all(world: ChainWorld) -> None:
    """If one action fails, none has happened, and the proposal stays Ready."""
    fails = Action.of(Kind.COMPOSE_HASH, world.kms_auth.address, COMPOSE)
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE), fails)
    world.warp(DELAY)

    with pytest.raises(RefusedError, match="refused without a reason"):
        world.call(execute_call(proposal))

    assert not world.app_auth.functions.allowedComposeHashes(COMPOSE).call()
    assert state(world, proposal) is State.READY


@pytest.mark.parametrize("who", ["owner", "guardian"])
@pytest.mark.parametrize("wait", [timedelta(), DELAY], ids=["waiting", "ready"])
def test_owner_and_guardian_cancel_what_is_pending(world: ChainWorld, who: str, wait: timedelta) -> None:
    """A cancelled proposal stays cancelled and cannot be executed."""
    account = getattr(world, who)
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    world.warp(wait + timedelta(seconds=1))

    receipt = world.call(cancel_call(proposal), account)

    world.warp(DELAY)
    assert events_of(world.operator, receipt) == [("ProposalCancelled", {"id": proposal.id, "by": account.address})]
    assert state(world, proposal) is State.CANCELLED
    with pytest.raises(RefusedError, match="want it Ready, it is Cancelled"):
        world.call(execute_call(proposal))


def test_what_is_over_cannot_be_cancelled(world: ChainWorld) -> None:
    """An executed, a cancelled and an expired proposal keep their state; history is not rewritten."""
    action = world.on_app(Kind.COMPOSE_HASH, COMPOSE)
    executed, cancelled, expired = world.grant(action), world.propose(action), world.propose(action)
    world.call(cancel_call(cancelled))
    world.warp(DELAY + WINDOW)

    for proposal, name in ((executed, "Executed"), (cancelled, "Cancelled"), (expired, "Expired")):
        with pytest.raises(RefusedError, match=f"want it Waiting or Ready, it is {name}"):
            world.call(cancel_call(proposal))


def test_a_stranger_cannot_cancel(world: ChainWorld) -> None:
    """Only owner and guardian stop a grant."""
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))

    with pytest.raises(RefusedError, match=f"{world.stranger.address}: want the owner or the guardian"):
        world.call(cancel_call(proposal), world.stranger)


def test_a_new_guardian_takes_over_only_by_the_grant_path_and_its_own_will(world: ChainWorld) -> None:
    """After acceptance the old guardian has no power and the new one has it; the change is announced."""
    heir = bytes.fromhex(world.stranger.address[2:])
    world.grant(Action.of(Kind.GUARDIAN, world.operator.address, heir))
    other = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    before = reader(world).guardian()
    receipt = world.send(world.stranger, world.operator, "acceptGuardian")

    with pytest.raises(RefusedError, match="want the owner or the guardian"):
        world.call(cancel_call(other), world.guardian)
    world.call(cancel_call(other), world.stranger)
    assert before == world.guardian.address
    assert events_of(world.operator, receipt) == [
        ("GuardianChanged", {"previous": world.guardian.address, "current": world.stranger.address})
    ]


def test_the_guardian_can_cancel_its_own_replacement(world: ChainWorld) -> None:
    """A power stated in the interface: a guardian gone bad stops every grant, but causes none."""
    heir = bytes.fromhex(world.stranger.address[2:])
    change = world.propose(Action.of(Kind.GUARDIAN, world.operator.address, heir))

    world.call(cancel_call(change), world.guardian)

    assert state(world, change) is State.CANCELLED


def test_ownership_of_the_operator_moves_by_the_grant_path_in_two_steps_and_never_ends(world: ChainWorld) -> None:
    """The heir must accept; handing on directly and renouncing are refused."""
    with pytest.raises(RefusedError, match="ownership is handed on by a proposal only"):
        world.send(world.owner, world.operator, "transferOwnership", world.stranger.address)
    world.grant(Action.of(Kind.OWNER, world.operator.address, bytes.fromhex(world.stranger.address[2:])))
    before = reader(world).owner()
    world.send(world.stranger, world.operator, "acceptOwnership")

    assert (before, reader(world).owner()) == (world.owner.address, world.stranger.address)
    with pytest.raises(RefusedError, match="ownership cannot be renounced"):
        world.send(world.stranger, world.operator, "renounceOwnership")


@pytest.mark.parametrize(("kind", "function"), [(Kind.OWNER, "acceptOwnership"), (Kind.GUARDIAN, "acceptGuardian")])
def test_only_who_was_named_accepts_and_within_14_days(world: ChainWorld, kind: Kind, function: str) -> None:
    """Nobody else can take a role, nobody can take one twice, and a nomination forgotten is void."""
    heir = world.stranger
    world.grant(Action.of(kind, world.operator.address, bytes.fromhex(heir.address[2:])))
    executed = now(world)

    with pytest.raises(RefusedError, match=f"{world.owner.address}: not named for this role"):
        world.send(world.owner, world.operator, function)
    with restored(world.chain):
        world.warp_to(executed + int(WINDOW.total_seconds()) - 2)
        world.send(heir, world.operator, function)
        with pytest.raises(RefusedError, match=f"{heir.address}: not named for this role"):
            world.send(heir, world.operator, function)
    world.warp_to(executed + int(WINDOW.total_seconds()))
    with pytest.raises(RefusedError, match=f"{heir.address}: not named for this role"):
        world.send(heir, world.operator, function)


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


def test_history_is_read_in_pages(world: ChainWorld) -> None:
    """Ids come in order of proposal; a page is cut at the end, and empty behind it."""
    proposals = [world.propose(world.on_app(Kind.COMPOSE_HASH, bytes([number] * 32))) for number in range(1, 4)]
    ids = [proposal.id for proposal in proposals]
    page = world.operator.functions.proposalIds

    assert [page(0, 2).call(), page(2, 2).call(), page(3, 2).call(), page(0, 0).call()] == [ids[:2], ids[2:], [], []]
    assert page(1, 2**256 - 1).call() == ids[1:]
    assert reader(world).proposals() == tuple(proposals)


def test_a_page_holds_at_most_100_ids(world: ChainWorld) -> None:
    """No question loops without a bound."""
    call = propose_call(world.deployment.operator, world.content(world.on_app(Kind.COMPOSE_HASH, COMPOSE)))
    for _ in range(101):
        world.call(call)

    assert len(world.operator.functions.proposalIds(0, 101).call()) == 100


def test_no_value_and_no_unknown_call_is_taken(world: ChainWorld) -> None:
    """The operator has neither a fallback nor a way to receive ETH."""
    for data in (b"", bytes.fromhex("deadbeef")):
        with pytest.raises(RefusedError, match="refused without a reason"):
            world.call(Call(world.deployment.operator, data))


def test_signers_can_ask_the_contract_for_the_id(world: ChainWorld) -> None:
    """The contract's own digest of content is the one computed on a machine without chain."""
    content = world.content(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    question = encode_call("UpgradeOperator", "proposalId", 7, content.abi_tuple())

    answer = world.w3.eth.call({"to": world.deployment.operator, "data": Web3.to_hex(question)})

    assert bytes(answer) == proposal_id(31337, world.deployment.operator, 7, content)
