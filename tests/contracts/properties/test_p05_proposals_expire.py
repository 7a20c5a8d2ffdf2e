"""P5: a proposal nobody executes expires (14 days by default)."""

from __future__ import annotations

from tests.governed_world import DAY, GovernedWorld, State


def test_p05_a_proposal_expires_14_days_after_it_was_ready(governed: GovernedWorld) -> None:
    """In the last second of the window it can be executed, in the next it cannot."""
    last, late = governed.propose(governed.compose()), governed.propose(governed.image())

    governed.execute(last, at=last.ready_at + 14 * DAY - 1)
    refusal = governed.execution_refused(late, at=late.ready_at + 14 * DAY)

    assert refusal == ("UnexpectedState", late.id, State.EXPIRED, State.READY)
    assert (governed.state(last), governed.state(late)) == (State.EXECUTED, State.EXPIRED)
    assert not governed.kms.functions.allowedOsImages(b"\x05" * 32).call()


def test_p05_expiry_needs_no_transaction(governed: GovernedWorld) -> None:
    """The state follows from the time alone, and cannot be changed back."""
    proposal = governed.propose(governed.compose())

    governed.warp_to(proposal.expires_at)

    assert governed.state(proposal) is State.EXPIRED
    assert governed.refused(governed.owner, governed.operator, "cancel", proposal.id) == (
        "NotPending",
        proposal.id,
        State.EXPIRED,
    )
