"""A3: the delay lowered, and then a race with the queue."""

from __future__ import annotations

import pytest

from tests.governed_world import DAY, MIN_DELAY, DelayClass, GovernedWorld, State


@pytest.fixture
def slow(governed: GovernedWorld) -> GovernedWorld:
    """Every class waits ten days."""
    governed.grant(*(governed.delay(each, 10 * DAY) for each in reversed(DelayClass)))
    return governed


def test_a03_what_is_in_the_queue_keeps_its_time(slow: GovernedWorld) -> None:
    """Lowering first and executing the waiting proposals after it gains nothing."""
    lowering = slow.propose(slow.delay(DelayClass.POLICY, MIN_DELAY))
    waiting = slow.propose(slow.compose(), at=lowering.ready_at - 1)
    slow.execute(lowering, at=lowering.ready_at)

    early = slow.execution_refused(waiting, at=waiting.proposed_at + MIN_DELAY)

    assert early == ("UnexpectedState", waiting.id, State.WAITING, State.READY)
    assert waiting.ready_at == waiting.proposed_at + 10 * DAY


def test_a03_cancelled_and_proposed_again_it_still_waits_48_hours(slow: GovernedWorld) -> None:
    """The quickest way to a grant is the old delay, then 48 hours more, both announced."""
    start = slow.now
    lowering = slow.propose(slow.delay(DelayClass.POLICY, MIN_DELAY))
    slow.execute(lowering, at=lowering.ready_at)

    grant = slow.propose(slow.compose())

    assert lowering.ready_at >= start + 10 * DAY
    assert grant.ready_at == grant.proposed_at + MIN_DELAY


def test_a03_a_lowering_kept_from_before_the_delay_grew(governed: GovernedWorld) -> None:
    """Announced while the delay was 48 hours, executed when it is ten days: too soon, until ten days have passed."""
    kept = governed.propose(governed.delay(DelayClass.POLICY, MIN_DELAY))
    governed.grant(governed.delay(DelayClass.UPGRADES, 10 * DAY), governed.delay(DelayClass.POLICY, 10 * DAY))

    refusal = governed.execution_refused(kept, at=kept.proposed_at + 10 * DAY - 1)
    governed.execute(kept, at=kept.proposed_at + 10 * DAY)

    assert refusal == ("LoweredTooSoon", DelayClass.POLICY, kept.proposed_at + 10 * DAY)


def test_a03_two_lowerings_in_one_batch(slow: GovernedWorld) -> None:
    """A batch lowers once; its second step is not measured by its first."""
    batch = slow.propose(slow.delay(DelayClass.POLICY, 5 * DAY), slow.delay(DelayClass.POLICY, MIN_DELAY))

    early = slow.execution_refused(batch, at=batch.proposed_at + 10 * DAY - 1)

    assert early == ("UnexpectedState", batch.id, State.WAITING, State.READY)
