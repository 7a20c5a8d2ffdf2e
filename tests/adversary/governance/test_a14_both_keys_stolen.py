"""A14: owner and guardian key stolen, both."""

from __future__ import annotations

from tests.governed_world import (
    DAY,
    DEVICE,
    MIN_DELAY,
    ON,
    DelayClass,
    GovernedWorld,
    Kind,
    State,
    word,
)

EVIL = b"\xee" * 32


def test_a14_nothing_is_granted_without_48_hours_of_notice(governed: GovernedWorld) -> None:
    """Together they hold every power there is, and none of them is faster."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE))
    evil = governed.propose(governed.compose(EVIL), rollback=[governed.compose(b"\xef" * 32)])

    refusals = [
        governed.execution_refused(evil, by=governed.owner),
        governed.refused(governed.guardian, governed.operator, "agreeToRollback", evil.id),
        governed.refused(governed.owner, governed.operator, "rollBack", evil.id, evil.content),
        governed.execution_refused(evil, at=evil.proposed_at + MIN_DELAY - 1),
    ]

    assert refusals == [
        ("UnexpectedState", evil.id, State.WAITING, State.READY),
        ("UnexpectedState", evil.id, State.WAITING, State.EXECUTED),
        ("UnexpectedState", evil.id, State.WAITING, State.EXECUTED),
        ("UnexpectedState", evil.id, State.WAITING, State.READY),
    ]
    assert governed.asked(compose_hash=EVIL) == (False, "Compose hash not allowed")


def test_a14_a_rollback_grants_only_what_was_announced_as_long(governed: GovernedWorld) -> None:
    """What both can run at once was public for 48 hours before, action by action, in the event."""
    staged = governed.grant(governed.image(), rollback=[governed.compose(EVIL)])
    governed.send(governed.guardian, governed.operator, "agreeToRollback", staged.id)
    other = staged.content._replace(rollback=[governed.compose(b"\xef" * 32)])

    refusal = governed.refused(governed.owner, governed.operator, "rollBack", staged.id, other)
    governed.send(governed.owner, governed.operator, "rollBack", staged.id, staged.content)

    assert refusal[:2] == ("ContentMismatch", staged.id)
    assert governed.now - staged.proposed_at >= MIN_DELAY


def test_a14_the_delay_cannot_be_talked_down(governed: GovernedWorld) -> None:
    """A ten-day delay protects for ten days against both, by proposal and by rollback."""
    governed.grant(*(governed.delay(each, 10 * DAY) for each in reversed(DelayClass)))
    lower = governed.delay(DelayClass.POLICY, MIN_DELAY)
    lowering = governed.propose(lower)
    staged = governed.propose(governed.on_app(Kind.ANY_DEVICE, ON), rollback=[lower])

    assert [each.ready_at - each.proposed_at for each in (lowering, staged)] == [10 * DAY] * 2
    assert governed.execution_refused(lowering, at=lowering.ready_at - 1)[0] == "UnexpectedState"


def test_a14_what_was_given_up_stays_given_up(governed: GovernedWorld) -> None:
    """An app frozen for good is safe from both: no grant, no new code, not even after the notice."""
    governed.grant(governed.on_app(Kind.FREEZE_FOR_GOOD, ON))
    grant = governed.propose(governed.compose(EVIL))
    code = governed.propose(governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(governed.app_implementation)))

    refusals = [governed.execution_refused(grant, at=code.ready_at), governed.execution_refused(code)]

    assert refusals == [("FrozenForGood",), ("Error", "Upgrades are permanently disabled")]
