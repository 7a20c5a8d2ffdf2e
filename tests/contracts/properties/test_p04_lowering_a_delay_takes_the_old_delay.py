"""P4: lowering a delay takes the old delay."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import DAY, MIN_DELAY, DelayClass, GovernedWorld, State


@pytest.fixture
def slow(governed: GovernedWorld) -> GovernedWorld:
    """Upgrades wait 20 days, roles 10, policy 5."""
    governed.grant(
        governed.delay(DelayClass.UPGRADES, 20 * DAY),
        governed.delay(DelayClass.ROLES, 10 * DAY),
        governed.delay(DelayClass.POLICY, 5 * DAY),
    )
    return governed


@pytest.mark.parametrize(
    ("delay_class", "old", "new"),
    [
        (DelayClass.POLICY, 5 * DAY, 2 * DAY),
        (DelayClass.ROLES, 10 * DAY, 2 * DAY),
        (DelayClass.UPGRADES, 20 * DAY, 10 * DAY),
    ],
)
def test_p04_each_class_waits_its_own_old_delay(
    slow: GovernedWorld, delay_class: DelayClass, old: int, new: int
) -> None:
    """One second before the old delay has passed the change is refused; then it happens and says both values."""
    change = slow.propose(slow.delay(delay_class, new))

    early = slow.execution_refused(change, at=change.proposed_at + old - 1)
    receipt = slow.execute(change, at=change.proposed_at + old)

    assert early == ("UnexpectedState", change.id, State.WAITING, State.READY)
    changed = ("DelayChanged", {"class": delay_class, "previous": old, "current": new})
    assert events_of(slow.operator, receipt)[1:] == [changed]
    assert slow.operator.functions.delayOf(slow.delay(delay_class, MIN_DELAY)).call() == new


def test_p04_a_change_proposed_before_a_delay_grew_cannot_lower_it_sooner(governed: GovernedWorld) -> None:
    """A lowering put in the queue while the delay was short is not a way around the longer one of today."""
    hidden = governed.propose(governed.delay(DelayClass.POLICY, MIN_DELAY))
    governed.grant(governed.delay(DelayClass.UPGRADES, 10 * DAY), governed.delay(DelayClass.POLICY, 10 * DAY))

    governed.warp_to(max(governed.now, hidden.ready_at))
    governed.transact(
        governed.stranger,
        governed.operator.address,
        bytes.fromhex(governed.operator.encode_abi("execute", args=[hidden.id, hidden.content])[2:]),
    )

    assert governed.operator.functions.delays().call()[DelayClass.POLICY] == 10 * DAY


def test_p04_a_staged_rollback_cannot_lower_a_delay_sooner(governed: GovernedWorld) -> None:
    """Owner and guardian together cannot undo a longer delay before that longer delay has passed."""
    raised = governed.grant(
        governed.delay(DelayClass.UPGRADES, 10 * DAY),
        governed.delay(DelayClass.POLICY, 10 * DAY),
        rollback=[governed.delay(DelayClass.POLICY, MIN_DELAY)],
    )
    governed.send(governed.guardian, governed.operator, "agreeToRollback", raised.id)

    governed.transact(
        governed.owner,
        governed.operator.address,
        bytes.fromhex(governed.operator.encode_abi("rollBack", args=[raised.id, raised.content])[2:]),
    )

    assert governed.operator.functions.delays().call()[DelayClass.POLICY] == 10 * DAY
