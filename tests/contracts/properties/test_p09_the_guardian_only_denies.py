"""P9: the guardian can only deny; every denial by it is bounded, or final but regrantable by the grant path."""

from __future__ import annotations

import pytest

from dstack.chain.artifacts import load_artifact
from tests.governed_world import (
    COMPOSE,
    DAY,
    DEVICE,
    FREEZE,
    GRANTED,
    KMS_MR,
    ON,
    OWN,
    Action,
    GovernedWorld,
    Kind,
    State,
    word,
    words,
)

NOT_DENIABLE = [
    Kind.GATEWAY_APP_ID,
    Kind.APP_IMPLEMENTATION,
    Kind.GUARDIAN,
    Kind.VERSION,
    Kind.FREEZE_RENEWAL,
    Kind.OWNER,
    Kind.DELAY,
    Kind.IMPLEMENTATION_UPGRADE,
    Kind.FREEZE_FOR_GOOD,
    Kind.KMS_INFO,
    Kind.KEY_EPOCH,
    Kind.FORCED_GUARDIAN,
    Kind.GENESIS,
]


def test_p09_the_powers_of_the_guardian_are_a_closed_list(governed: GovernedWorld) -> None:
    """Of all functions that write, these are all there are; what only the owner has is refused to the guardian."""
    abi = load_artifact("UpgradeOperator").abi
    writing = {e["name"] for e in abi if e["type"] == "function" and e["stateMutability"] not in ("view", "pure")}

    assert writing == {
        *("propose", "adopt"),  # the owner
        *("cancel", "deny", "agreeToRollback", "rollBack"),  # owner and guardian
        *("execute", "acceptOwnership", "acceptGuardian"),  # anybody, under conditions
        "anchorReceipt",  # anybody; it only emits an event
    }
    content = governed.content([governed.compose()])
    for function, argument in (("propose", content), ("adopt", governed.app.address)):
        refusal = governed.refused(governed.guardian, governed.operator, function, argument)
        assert refusal == ("OwnableUnauthorizedAccount", governed.guardian)


@pytest.mark.parametrize("kind", NOT_DENIABLE, ids=lambda kind: kind.name)
def test_p09_only_kinds_of_the_closed_list_are_denied(governed: GovernedWorld, kind: Kind) -> None:
    """Neither guardian nor owner gets anything else through the deny path."""
    action = Action(kind, (governed.operator if kind in OWN else governed.app).address, words(1))

    for account in (governed.guardian, governed.owner):
        assert governed.refused(account, governed.operator, "deny", [action]) == ("NotDeniable", kind)


def test_p09_the_guardian_gives_up_nothing_for_good(governed: GovernedWorld) -> None:
    """Contract upgrades are the owner's to give up."""
    action = governed.on_app(Kind.CONTRACT_UPGRADES, ON)

    refusal = governed.refused(governed.guardian, governed.operator, "deny", [action])
    governed.deny(action, by=governed.owner)

    assert refusal == ("NotForGuardian", Kind.CONTRACT_UPGRADES)
    assert governed.app.functions.upgradesDisabled().call()


def test_p09_what_the_guardian_denied_can_be_granted_again(governed: GovernedWorld) -> None:
    """Everything it can take back, all at once, comes back by one new proposal that waits its time."""
    grants = [
        governed.image(),
        governed.on_app(Kind.DEVICE, DEVICE),
        governed.on_app(Kind.ANY_DEVICE, ON),
        governed.compose(),
        governed.on_kms(Kind.KMS_AGGREGATED_MR, KMS_MR),
        governed.on_kms(Kind.KMS_DEVICE, DEVICE),
    ]
    tolerate = governed.on_app(Kind.OUTDATED_TCB, word(governed.now + 60 * DAY))
    governed.grant(*grants, tolerate)
    kms_allowed = governed.kms.functions.isKmsAllowed
    before = governed.asked(tcb_status="OutOfDate"), tuple(kms_allowed(governed.boot()).call())

    governed.deny(*grants, governed.on_app(Kind.OUTDATED_TCB, ON))
    after = governed.asked(), tuple(kms_allowed(governed.boot()).call())
    governed.grant(*grants, tolerate)

    assert before == (GRANTED, GRANTED)
    assert after == ((False, "OS image is not allowed"),) * 2
    assert governed.asked(tcb_status="OutOfDate") == GRANTED
    assert tuple(kms_allowed(governed.boot()).call()) == GRANTED


def test_p09_a_version_that_the_guardian_ended_comes_back_as_a_new_one(governed: GovernedWorld) -> None:
    """An end is final for its version; its content comes back under a new number, marked as a rollback."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.version(1))
    governed.deny(governed.sunset(1, 0))
    after = governed.asked()

    longer = governed.propose(governed.sunset(1, 0))
    ended_at = governed.app.functions.versionRecord(1).call()[1]
    refusal = governed.execution_refused(longer, at=longer.ready_at)
    governed.grant(governed.version(2, is_rollback=True))

    assert (after, refusal) == ((False, "Compose hash not allowed"), ("VersionEnded", 1, ended_at))
    assert governed.asked() == GRANTED


def test_p09_a_freeze_by_the_guardian_ends_by_itself(governed: GovernedWorld) -> None:
    """After seven days the app is as it was."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose())
    governed.deny(governed.freeze())
    frozen = governed.asked()

    governed.warp_to(governed.now + FREEZE)

    assert (frozen, governed.asked()) == ((False, "App is frozen"), GRANTED)


def test_p09_the_guardian_can_cancel_every_grant_but_one_and_cause_none(governed: GovernedWorld) -> None:
    """Also its replacement by the short way. It cannot execute early."""
    heir = governed.propose(governed.on_self(Kind.GUARDIAN, word(governed.stranger)))
    other = governed.propose(governed.compose())

    early = governed.execution_refused(other, by=governed.guardian, at=other.ready_at - 1)
    governed.send(governed.guardian, governed.operator, "cancel", heir.id)

    assert early == ("UnexpectedState", other.id, State.WAITING, State.READY)
    assert (governed.state(heir), governed.operator.functions.guardian().call()) == (State.CANCELLED, governed.guardian)
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_p09_denying_its_own_replacement_is_bounded(governed: GovernedWorld) -> None:
    """The long way it cannot cancel, neither while that waits nor when it is Ready; the owner can."""
    forced, taken_back = (governed.propose(governed.force_guardian(governed.stranger)) for _ in range(2))

    refusals = [
        governed.refused(governed.guardian, governed.operator, "cancel", forced.id, at=at)
        for at in (forced.ready_at - 1, forced.ready_at)
    ]
    governed.send(governed.owner, governed.operator, "cancel", taken_back.id)
    governed.execute(forced)
    governed.send(governed.stranger, governed.operator, "acceptGuardian")

    assert refusals == [("NotForGuardian", Kind.FORCED_GUARDIAN)] * 2
    assert governed.state(taken_back) is State.CANCELLED
    assert governed.operator.functions.guardian().call() == governed.stranger
    assert governed.refused(governed.guardian, governed.operator, "deny", [governed.compose()]) == (
        "NeitherOwnerNorGuardian",
        governed.guardian,
    )


@pytest.mark.parametrize("place", ["beside a grant", "before a grant", "twice", "with a rollback", "as a rollback"])
def test_p09_what_the_guardian_cannot_cancel_brings_nothing_along(governed: GovernedWorld, place: str) -> None:
    """A forced replacement is alone in its proposal, so nothing else escapes the guardian."""
    forced, grant = governed.force_guardian(governed.stranger), governed.compose()
    actions, rollback = {
        "beside a grant": ([grant, forced], []),
        "before a grant": ([forced, grant], []),
        "twice": ([forced, forced], []),
        "with a rollback": ([forced], [grant]),
        "as a rollback": ([grant], [forced]),
    }[place]
    content = governed.content(actions, rollback)

    refusal = governed.refused(governed.owner, governed.operator, "propose", content)

    assert refusal == ("NotAlone", Kind.FORCED_GUARDIAN)


def test_p09_an_owner_that_is_its_own_guardian_cancels_everything(governed: GovernedWorld) -> None:
    """The limit is the guardian's; where both are one account it is the owner's, who may."""
    governed.grant(governed.on_self(Kind.GUARDIAN, word(governed.owner)))
    governed.send(governed.owner, governed.operator, "acceptGuardian")
    forced = governed.propose(governed.force_guardian(governed.stranger))

    governed.send(governed.owner, governed.operator, "cancel", forced.id)

    assert governed.state(forced) is State.CANCELLED


def test_p09_a_nomination_by_force_is_no_stronger_than_another(governed: GovernedWorld) -> None:
    """The newest nomination counts, whichever kind made it; the old guardian stays until somebody accepts."""
    heirs = [governed.chain.funded_account().address for _ in range(2)]
    forced = governed.propose(governed.force_guardian(heirs[0]))
    governed.execute(forced, at=forced.ready_at)
    governed.grant(governed.on_self(Kind.GUARDIAN, word(heirs[1])))

    assert governed.refused(heirs[0], governed.operator, "acceptGuardian") == ("NotNominated", heirs[0])
    assert governed.operator.functions.guardian().call() == governed.guardian
    governed.send(heirs[1], governed.operator, "acceptGuardian")
    assert governed.operator.functions.guardian().call() == heirs[1]
