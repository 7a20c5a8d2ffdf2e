"""P25: time is block.timestamp; edges are tested at minus one, exact, plus one second."""

from __future__ import annotations

import pytest

from tests.governed_world import (
    DAY,
    DEVICE,
    FREEZE,
    GRANTED,
    MAX_TOLERATION,
    WINDOW,
    GovernedWorld,
    Kind,
    State,
    word,
)

EDGE = [-1, 0, 1]


@pytest.mark.parametrize(("offset", "state"), zip(EDGE, [State.WAITING, State.READY, State.READY], strict=True))
def test_p25_from_waiting_to_ready(governed: GovernedWorld, offset: int, state: State) -> None:
    """Ready from the very second on, in the view as in a transaction."""
    proposal = governed.propose(governed.compose())
    at = proposal.ready_at + offset
    data = bytes.fromhex(governed.operator.encode_abi("execute", args=[proposal.id, proposal.content])[2:])

    receipt = governed.transact(governed.stranger, governed.operator.address, data, at=at)

    assert receipt["status"] == (state is State.READY)
    assert governed.state(proposal) is (State.EXECUTED if state is State.READY else State.WAITING)


@pytest.mark.parametrize(("offset", "state"), zip(EDGE, [State.READY, State.EXPIRED, State.EXPIRED], strict=True))
def test_p25_from_ready_to_expired(governed: GovernedWorld, offset: int, state: State) -> None:
    """Expired from the very second on."""
    proposal = governed.propose(governed.compose())

    governed.warp_to(proposal.expires_at + offset)

    assert governed.state(proposal) is state


@pytest.mark.parametrize(("offset", "taken"), zip(EDGE, [True, False, False], strict=True))
@pytest.mark.parametrize("kind", [Kind.OWNER, Kind.GUARDIAN])
def test_p25_the_end_of_a_nomination(governed: GovernedWorld, kind: Kind, offset: int, taken: bool) -> None:
    """It can be accepted before its end, not at it."""
    proposal = governed.grant(governed.on_self(kind, word(governed.stranger)))
    accept = "acceptOwnership" if kind is Kind.OWNER else "acceptGuardian"
    data = bytes.fromhex(governed.operator.encode_abi(accept)[2:])

    at = proposal.ready_at + WINDOW + offset
    receipt = governed.transact(governed.stranger, governed.operator.address, data, at=at)

    assert receipt["status"] == taken


@pytest.mark.parametrize(("offset", "open_"), zip(EDGE, [True, False, False], strict=True))
def test_p25_the_end_of_a_rollback(governed: GovernedWorld, offset: int, open_: bool) -> None:
    """It can be agreed to, and run, before its end, not at it."""
    done = governed.grant(governed.compose(), rollback=[governed.image()])
    closes = done.ready_at + WINDOW
    governed.send(governed.guardian, governed.operator, "agreeToRollback", done.id)
    data = bytes.fromhex(governed.operator.encode_abi("rollBack", args=[done.id, done.content])[2:])

    receipt = governed.transact(governed.owner, governed.operator.address, data, at=closes + offset)

    assert receipt["status"] == open_
    if not open_:
        refusal = governed.refused(governed.guardian, governed.operator, "agreeToRollback", done.id)
        assert refusal == ("RollbackClosed", done.id, closes)


@pytest.mark.parametrize(("offset", "frozen"), zip(EDGE, [True, False, False], strict=True))
def test_p25_the_end_of_a_freeze(governed: GovernedWorld, offset: int, frozen: bool) -> None:
    """Frozen before it, free at it."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose())
    governed.deny(governed.freeze())

    governed.warp_to(governed.now + FREEZE + offset)

    assert governed.asked() == ((False, "App is frozen") if frozen else GRANTED)


@pytest.mark.parametrize(("offset", "live"), zip(EDGE, [True, False, False], strict=True))
def test_p25_the_end_of_a_version(governed: GovernedWorld, offset: int, live: bool) -> None:
    """Allowed before its end, not at it."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.version(1))
    end = governed.now + DAY
    governed.deny(governed.sunset(1, end))

    governed.warp_to(end + offset)

    assert governed.asked() == (GRANTED if live else (False, "Compose hash not allowed"))


@pytest.mark.parametrize(("offset", "tolerated"), zip(EDGE, [True, False, False], strict=True))
def test_p25_the_end_of_tolerance(governed: GovernedWorld, offset: int, tolerated: bool) -> None:
    """An outdated TCB passes before the end, not at it."""
    end = governed.now + 30 * DAY
    tolerate = governed.on_app(Kind.OUTDATED_TCB, word(end))
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose(), tolerate)

    governed.warp_to(end + offset)

    assert governed.asked(tcb_status="OutOfDate") == (GRANTED if tolerated else (False, "TCB status is not up to date"))
    assert governed.asked() == GRANTED


@pytest.mark.parametrize(("offset", "taken"), zip(EDGE, [True, True, False], strict=True))
def test_p25_tolerance_ends_90_days_ahead_at_most(governed: GovernedWorld, offset: int, taken: bool) -> None:
    """Counted from the execution, the last second included; the past is no end either."""
    end = governed.now + 100 * DAY
    proposal = governed.propose(governed.on_app(Kind.OUTDATED_TCB, word(end)))
    at = end - MAX_TOLERATION - offset

    if taken:
        governed.execute(proposal, at=at)
    else:
        refusal = governed.execution_refused(proposal, at=at)
        assert refusal == ("TimeOutOfRange", end, at + 1, at + MAX_TOLERATION)
    assert governed.app.functions.outdatedTcbToleratedUntil().call() == (end if taken else 0)


@pytest.mark.parametrize(("offset", "taken"), zip(EDGE, [True, False, False], strict=True))
def test_p25_an_end_of_tolerance_lies_ahead(governed: GovernedWorld, offset: int, taken: bool) -> None:
    """Executed at its own end or later, it tolerates nothing."""
    end = governed.now + 10 * DAY
    proposal = governed.propose(governed.on_app(Kind.OUTDATED_TCB, word(end)))
    at = end + offset

    if taken:
        governed.execute(proposal, at=at)
    else:
        refusal = governed.execution_refused(proposal, at=at)
        assert refusal == ("TimeOutOfRange", end, at + 1, at + MAX_TOLERATION)
