"""A4: the same content proposed twice, one cancelled."""

from __future__ import annotations

from tests.governed_world import COMPOSE, GovernedWorld, State


def test_a04_a_cancelled_twin_cannot_be_executed_under_the_name_of_the_other(governed: GovernedWorld) -> None:
    """Each has its id; the cancelled one stays cancelled, the other goes its way, and both ids are named apart."""
    first, second = governed.propose(governed.compose()), governed.propose(governed.compose())
    governed.send(governed.guardian, governed.operator, "cancel", first.id)

    refusal = governed.execution_refused(first, at=second.ready_at)
    governed.execute(second)

    assert first.content == second.content
    assert refusal == ("UnexpectedState", first.id, State.CANCELLED, State.READY)
    assert (governed.state(first), governed.state(second)) == (State.CANCELLED, State.EXECUTED)


def test_a04_a_denial_stops_every_twin(governed: GovernedWorld) -> None:
    """Whoever wants to stop the content, and not one proposal, denies it: all announced copies are dead."""
    twins = [governed.propose(governed.compose()) for _ in range(3)]
    governed.deny(governed.compose())
    denied_at = governed.now

    refusals = [governed.execution_refused(each, at=twins[-1].ready_at + i) for i, each in enumerate(twins)]

    assert refusals == [("DeniedSince", 0, governed.app.address, COMPOSE, denied_at)] * 3


def test_a04_a_twin_executed_after_a_denial_and_regrant_brings_nothing_back(governed: GovernedWorld) -> None:
    """A copy kept in the queue for a second use after the denial is refused like the first."""
    kept = governed.propose(governed.compose())
    used = governed.propose(governed.compose())
    governed.execute(used, at=used.ready_at)
    governed.deny(governed.compose())
    denied_at = governed.now

    assert governed.execution_refused(kept) == ("DeniedSince", 0, governed.app.address, COMPOSE, denied_at)
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()
