"""P3: the earliest time is fixed when proposed; later changes of the delay never shorten a waiting proposal."""

from __future__ import annotations

from tests.governed_world import DAY, MIN_DELAY, DelayClass, GovernedWorld, State


def test_p03_a_shorter_delay_does_not_reach_back(governed: GovernedWorld) -> None:
    """What was proposed under five days waits five days, although the delay is two by then."""
    governed.grant(governed.delay(DelayClass.UPGRADES, 5 * DAY), governed.delay(DelayClass.POLICY, 5 * DAY))
    lowering = governed.propose(governed.delay(DelayClass.POLICY, MIN_DELAY))
    waiting = governed.propose(governed.compose(), at=lowering.ready_at - 1)

    governed.execute(lowering, at=lowering.ready_at)

    early = governed.execution_refused(waiting, at=waiting.proposed_at + 5 * DAY - 1)
    assert early == ("UnexpectedState", waiting.id, State.WAITING, State.READY)
    assert governed.operator.functions.proposal(waiting.id).call()[2] == waiting.proposed_at + 5 * DAY
    governed.execute(waiting, at=waiting.proposed_at + 5 * DAY)


def test_p03_a_longer_delay_does_not_reach_back_either(governed: GovernedWorld) -> None:
    """What everybody read in the event stays true: readyAt and the end of the window do not move."""
    longer = governed.propose(governed.delay(DelayClass.UPGRADES, 9 * DAY), governed.delay(DelayClass.POLICY, 9 * DAY))
    waiting = governed.propose(governed.compose())

    governed.execute(longer, at=longer.ready_at)

    governed.execute(waiting, at=waiting.proposed_at + MIN_DELAY)
    assert governed.state(waiting) is State.EXECUTED
