"""A8: reviving an expired proposal."""

from __future__ import annotations

from tests.governed_world import DAY, DelayClass, GovernedWorld, State, proposal_id


def test_a08_nothing_brings_it_back(governed: GovernedWorld) -> None:
    """It cannot be executed, cancelled or rolled back; changed delays do not stretch its window."""
    expired = governed.propose(governed.compose(), rollback=[governed.image()])
    governed.warp_to(expired.expires_at)
    governed.grant(governed.delay(DelayClass.UPGRADES, 30 * DAY), governed.delay(DelayClass.POLICY, 30 * DAY))

    refusals = [
        governed.execution_refused(expired),
        governed.refused(governed.owner, governed.operator, "cancel", expired.id),
        governed.refused(governed.owner, governed.operator, "agreeToRollback", expired.id),
        governed.refused(governed.owner, governed.operator, "rollBack", expired.id, expired.content),
    ]

    assert refusals == [
        ("UnexpectedState", expired.id, State.EXPIRED, State.READY),
        ("NotPending", expired.id, State.EXPIRED),
        ("UnexpectedState", expired.id, State.EXPIRED, State.EXECUTED),
        ("UnexpectedState", expired.id, State.EXPIRED, State.EXECUTED),
    ]


def test_a08_the_same_content_starts_from_the_beginning(governed: GovernedWorld) -> None:
    """Proposed again it has another id and waits in full."""
    expired = governed.propose(governed.compose())
    governed.warp_to(expired.expires_at)

    again = governed.propose(governed.compose())

    assert again.id == proposal_id(31337, governed.operator.address, 1, expired.content) != expired.id
    assert again.ready_at == again.proposed_at + 2 * DAY
    assert (governed.state(expired), governed.state(again)) == (State.EXPIRED, State.WAITING)
