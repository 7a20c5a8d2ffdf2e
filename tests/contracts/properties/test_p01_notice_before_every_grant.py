"""P1: nothing becomes allowed sooner than max(48 h, role delay) after a public event with its full content."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import (
    COMPOSE,
    DAY,
    DEVICE,
    FORCED_DELAY,
    GRANTED,
    IMAGE,
    KMS_MR,
    MIN_DELAY,
    ON,
    URI,
    WINDOW,
    Action,
    DelayClass,
    GovernedWorld,
    Kind,
    State,
    word,
)


def all_grants(world: GovernedWorld) -> dict[Kind, Action]:
    """One action of every kind that can be granted."""
    stranger = word(world.stranger)
    return {
        Kind.COMPOSE_HASH: world.compose(),
        Kind.DEVICE: world.on_app(Kind.DEVICE, DEVICE),
        Kind.ANY_DEVICE: world.on_app(Kind.ANY_DEVICE, ON),
        Kind.OUTDATED_TCB: world.on_app(Kind.OUTDATED_TCB, word(world.now + 30 * DAY)),
        Kind.OS_IMAGE: world.image(),
        Kind.KMS_AGGREGATED_MR: world.on_kms(Kind.KMS_AGGREGATED_MR, KMS_MR),
        Kind.KMS_DEVICE: world.on_kms(Kind.KMS_DEVICE, DEVICE),
        Kind.GATEWAY_APP_ID: world.on_kms(Kind.GATEWAY_APP_ID, stranger),
        Kind.APP_IMPLEMENTATION: world.on_kms(Kind.APP_IMPLEMENTATION, word(world.kms_implementation)),
        Kind.GUARDIAN: world.on_self(Kind.GUARDIAN, stranger),
        Kind.VERSION: world.version(1),
        Kind.SUNSET: world.sunset(1, world.now + DAY),
        Kind.APP: world.freeze(),
        Kind.FREEZE_RENEWAL: world.freeze(Kind.FREEZE_RENEWAL),
        Kind.OWNER: world.on_self(Kind.OWNER, stranger),
        Kind.DELAY: world.delay(DelayClass.POLICY, MIN_DELAY),
        Kind.IMPLEMENTATION_UPGRADE: world.on_app(Kind.IMPLEMENTATION_UPGRADE, word(world.app_implementation)),
        Kind.FREEZE_FOR_GOOD: world.on_app(Kind.FREEZE_FOR_GOOD, ON),
        Kind.KMS_INFO: world.kms_info(),
        Kind.KEY_EPOCH: world.key_epoch(1),
        Kind.FORCED_GUARDIAN: world.force_guardian(world.stranger),
        Kind.GENESIS: world.genesis(),
    }


def test_p01_a_machine_gets_keys_48_hours_after_the_event_and_not_a_second_sooner(governed: GovernedWorld) -> None:
    """KmsAuth and the operator say no until the proposal is executed, which fails one second early."""
    proposal = governed.propose(governed.image(), governed.compose(), governed.on_app(Kind.DEVICE, DEVICE))

    early = governed.execution_refused(proposal, at=proposal.proposed_at + MIN_DELAY - 1)
    before = governed.asked(), governed.allowed_at(governed.now)
    governed.execute(proposal, at=proposal.proposed_at + MIN_DELAY)

    assert early == ("UnexpectedState", proposal.id, State.WAITING, State.READY)
    assert before == ((False, "OS image is not allowed"),) * 2
    assert (governed.asked(), governed.allowed_at(governed.now)) == (GRANTED, GRANTED)


def test_p01_the_event_holds_the_whole_content(governed: GovernedWorld) -> None:
    """Who, when, from when to when, every action, every code hash, and where to read more."""
    content = governed.content([governed.compose(), governed.version(3)], [governed.version(4, is_rollback=True)])

    receipt = governed.send(governed.owner, governed.operator, "propose", content)

    now = governed.now
    ((name, event),) = events_of(governed.operator, receipt)
    read = event.pop("content")
    assert (name, event) == (
        "ProposalQueued",
        {
            "id": governed.operator.functions.proposalId(0, content).call(),
            "by": governed.owner,
            "nonce": 0,
            "readyAt": now + MIN_DELAY,
            "expiresAt": now + MIN_DELAY + WINDOW,
        },
    )
    assert [tuple(each.values()) for each in read["actions"]] == content.actions
    assert [tuple(each.values()) for each in read["rollback"]] == content.rollback
    assert (read["codeHashes"], read["uri"]) == (content.code_hashes, URI)


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.CONTRACT_UPGRADES], ids=lambda k: k.name)
def test_p01_every_kind_waits_48_hours(governed: GovernedWorld, kind: Kind) -> None:
    """One second early each is refused for being early, whatever it would do; one of them waits longer."""
    wait = FORCED_DELAY if kind is Kind.FORCED_GUARDIAN else MIN_DELAY
    action = all_grants(governed)[kind]
    proposal = governed.propose(action)

    early = governed.execution_refused(proposal, at=proposal.ready_at - 1)

    assert proposal.ready_at == proposal.proposed_at + wait
    assert governed.operator.functions.delayOf(action).call() == wait
    assert early == ("UnexpectedState", proposal.id, State.WAITING, State.READY)


def test_p01_a_longer_role_delay_is_waited_for(governed: GovernedWorld) -> None:
    """A proposal waits the longest delay of its actions, those of its rollback included."""
    governed.grant(governed.delay(DelayClass.UPGRADES, 9 * DAY), governed.delay(DelayClass.ROLES, 5 * DAY))
    heir = governed.on_self(Kind.OWNER, word(governed.stranger))
    upgrade = governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(governed.app_implementation))

    proposals = [
        governed.propose(governed.compose()),
        governed.propose(governed.compose(), heir),
        governed.propose(heir, governed.compose(), upgrade),
        governed.propose(governed.compose(), rollback=[heir]),
        governed.propose(governed.compose(), rollback=[governed.compose(), upgrade]),
    ]

    waits = [proposal.ready_at - proposal.proposed_at for proposal in proposals]
    assert waits == [2 * DAY, 5 * DAY, 9 * DAY, 5 * DAY, 9 * DAY]


def test_p01_nothing_is_allowed_by_content_that_nobody_announced(governed: GovernedWorld) -> None:
    """Execution of an id without an event fails, also when the content given has that id."""
    content = governed.content([governed.compose()])
    would_be = governed.operator.functions.proposalId(0, content).call()

    refusal = governed.refused(governed.stranger, governed.operator, "execute", would_be, content)

    assert refusal == ("UnexpectedState", would_be, State.UNSET, State.READY)


def test_p01_an_app_that_the_operator_never_announced_is_not_allowed_by_it(governed: GovernedWorld) -> None:
    """What a stranger makes in the operator's name, with a policy of the stranger's, gets no yes of it."""
    governed.grant(governed.image())
    arguments = (governed.operator.address, False, False, True, bytes(32), COMPOSE)
    function = "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"

    receipt = governed.send(governed.stranger, governed.kms, function, *arguments)

    (made,) = (event for name, event in events_of(governed.kms, receipt) if name == "AppDeployedViaFactory")
    allowed, _ = governed.allowed_at(governed.now, COMPOSE, IMAGE, app=made["appId"])
    assert not allowed


def test_p01_an_adopted_app_brings_no_grants_along(governed: GovernedWorld) -> None:
    """What an app allowed under its old owner was not announced here; adoption alone does not make it a yes."""
    governed.grant(governed.image())
    app = governed.own_app(governed.stranger, COMPOSE)
    governed.send(governed.stranger, governed.kms, "registerApp", app.address)
    governed.send(governed.stranger, app, "transferOwnership", governed.operator.address)

    governed.send(governed.owner, governed.operator, "adopt", app.address)

    allowed, _ = governed.allowed_at(governed.now, app=app.address)
    assert not allowed
