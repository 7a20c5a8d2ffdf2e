"""A5: cancel and execute in one block."""

from __future__ import annotations

import pytest

from tests.governed_world import COMPOSE, GovernedWorld, Sent, State


@pytest.mark.parametrize("cancel_first", [True, False])
def test_a05_one_of_both_happens(governed: GovernedWorld, cancel_first: bool) -> None:
    """Whichever comes first in the block wins, the other fails, and the state says which."""
    proposal = governed.propose(governed.compose())
    calls = [
        Sent(governed.guardian, governed.operator, "cancel", (proposal.id,)),
        Sent(governed.stranger, governed.operator, "execute", (proposal.id, proposal.content)),
    ]

    statuses = governed.in_one_block(*(calls if cancel_first else calls[::-1]), at=proposal.ready_at)

    assert statuses == [1, 0]
    assert governed.state(proposal) is (State.CANCELLED if cancel_first else State.EXECUTED)
    assert governed.app.functions.allowedComposeHashes(COMPOSE).call() is not cancel_first


def test_a05_a_guardian_that_denies_as_well_always_wins(governed: GovernedWorld) -> None:
    """A denial in the same block undoes an execution that came first, so the drill is: cancel and deny."""
    proposal = governed.propose(governed.compose())

    statuses = governed.in_one_block(
        Sent(governed.stranger, governed.operator, "execute", (proposal.id, proposal.content)),
        Sent(governed.guardian, governed.operator, "cancel", (proposal.id,)),
        Sent(governed.guardian, governed.operator, "deny", ([governed.compose()],)),
        at=proposal.ready_at,
    )

    assert statuses == [1, 0, 1]
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_a05_proposed_cancelled_and_executed_in_one_block(governed: GovernedWorld) -> None:
    """Nothing of it comes into force."""
    content = governed.content([governed.compose()])
    identity = bytes(governed.operator.functions.proposalId(0, content).call())

    statuses = governed.in_one_block(
        Sent(governed.owner, governed.operator, "propose", (content,)),
        Sent(governed.stranger, governed.operator, "execute", (identity, content)),
        Sent(governed.guardian, governed.operator, "cancel", (identity,)),
    )

    assert statuses == [1, 0, 1]
    assert governed.operator.functions.stateOf(identity).call() == State.CANCELLED
