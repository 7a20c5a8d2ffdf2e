"""A12: owner key stolen, before or after the earliest time. The thief is the owner account; the guardian is honest."""

from __future__ import annotations

from tests.governed_world import (
    DAY,
    DEVICE,
    FORCED_DELAY,
    GRANTED,
    MIN_DELAY,
    ON,
    DelayClass,
    GovernedWorld,
    Kind,
    State,
    word,
)

EVIL = b"\xee" * 32


def test_a12_before_the_earliest_time_the_guardian_cancels(governed: GovernedWorld) -> None:
    """Everything that the thief proposes can be seen for 48 hours and stopped in its last second."""
    evil = governed.propose(governed.compose(EVIL), governed.on_app(Kind.ANY_DEVICE, ON))

    governed.send(governed.guardian, governed.operator, "cancel", evil.id, at=evil.ready_at - 1)

    refusal = governed.execution_refused(evil, at=evil.ready_at)
    assert refusal == ("UnexpectedState", evil.id, State.CANCELLED, State.READY)


def test_a12_after_the_earliest_time_the_guardian_denies(governed: GovernedWorld) -> None:
    """What nobody saw in time is taken back in one transaction, and its waiting copies die with it."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE))
    copy = governed.propose(governed.compose(EVIL))
    governed.grant(governed.compose(EVIL))
    before = governed.asked(compose_hash=EVIL)

    governed.deny(governed.compose(EVIL))
    denied_at = governed.now

    assert (before, governed.asked(compose_hash=EVIL)) == (GRANTED, (False, "Compose hash not allowed"))
    refusal = governed.execution_refused(copy)
    assert refusal == ("DeniedSince", Kind.COMPOSE_HASH, governed.app.address, EVIL, denied_at)


def test_a12_the_thief_cannot_get_rid_of_the_guardian_unseen(governed: GovernedWorld) -> None:
    """Replacing it takes the role delay, in which the guardian cancels its replacement."""
    replacement = governed.propose(governed.on_self(Kind.GUARDIAN, word(governed.owner)))

    governed.send(governed.guardian, governed.operator, "cancel", replacement.id)

    assert governed.execution_refused(replacement, at=replacement.ready_at)[0] == "UnexpectedState"
    assert governed.operator.functions.guardian().call() == governed.guardian


def test_a12_forcing_out_the_guardian_takes_a_week_in_public_and_grants_nothing(governed: GovernedWorld) -> None:
    """What the thief then wants to allow waits its own 48 hours; until the guardian is gone it is cancelled."""
    forced = governed.propose(governed.force_guardian(governed.owner))
    evil = governed.propose(governed.compose(EVIL))
    governed.send(governed.guardian, governed.operator, "cancel", evil.id)

    early = governed.execution_refused(forced, at=forced.proposed_at + FORCED_DELAY - 1)
    governed.execute(forced, at=forced.ready_at)
    last = governed.propose(governed.compose(EVIL))
    governed.send(governed.owner, governed.operator, "acceptGuardian")
    too_soon = governed.execution_refused(last, at=forced.ready_at + MIN_DELAY)

    assert early == ("UnexpectedState", forced.id, State.WAITING, State.READY)
    assert last.ready_at - forced.proposed_at >= FORCED_DELAY + MIN_DELAY
    assert too_soon == ("UnexpectedState", last.id, State.WAITING, State.READY)


def test_a12_the_rightful_owner_with_the_same_key_cancels_it(governed: GovernedWorld) -> None:
    """A key that was copied is still the owner's, too: the guardian stays in office."""
    forced = governed.propose(governed.force_guardian(governed.stranger))

    governed.send(governed.owner, governed.operator, "cancel", forced.id, at=forced.ready_at)

    assert governed.execution_refused(forced)[:1] == ("UnexpectedState",)
    assert governed.operator.functions.guardian().call() == governed.guardian


def test_a12_a_longer_role_delay_is_a_longer_warning(governed: GovernedWorld) -> None:
    """Owners who fear a stolen owner more than a stolen guardian wait longer than a week."""
    governed.grant(governed.delay(DelayClass.UPGRADES, 30 * DAY), governed.delay(DelayClass.ROLES, 30 * DAY))

    forced = governed.propose(governed.force_guardian(governed.stranger))

    assert forced.ready_at - forced.proposed_at == 30 * DAY


def test_a12_the_thief_cannot_give_the_contracts_away(governed: GovernedWorld) -> None:
    """There is no action that hands on KmsAuth or an app, and the role itself moves only by a proposal."""
    refusals = [
        governed.refused(governed.owner, contract, "transferOwnership", governed.owner)
        for contract in (governed.kms, governed.app, governed.operator)
    ]

    assert refusals == [("OwnableUnauthorizedAccount", governed.owner)] * 2 + [("OnlyByProposal",)]


def test_a12_everything_at_once_still_waits(governed: GovernedWorld) -> None:
    """Sixteen actions of the worst kinds in one proposal are not a second faster than one."""
    evil = governed.propose(
        *(governed.compose(bytes([n]) * 32) for n in range(1, 14)),
        governed.on_app(Kind.ANY_DEVICE, ON),
        governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(governed.app_implementation)),
        governed.on_self(Kind.OWNER, word(governed.stranger)),
    )

    assert evil.ready_at == evil.proposed_at + MIN_DELAY
    assert governed.execution_refused(evil, at=evil.ready_at - 1)[0] == "UnexpectedState"
