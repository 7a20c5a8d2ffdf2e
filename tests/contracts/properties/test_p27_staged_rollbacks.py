"""P27: a rollback can be staged with its upgrade and run early only by owner and guardian together, in its window."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import (
    COMPOSE,
    DAY,
    DEVICE,
    GRANTED,
    ZERO_ADDRESS,
    GovernedWorld,
    Kind,
    Proposal,
    State,
    word,
)

NEXT = b"\xc2" * 32
NO = (False, "Compose hash not allowed")


@pytest.fixture
def upgraded(governed: GovernedWorld) -> tuple[GovernedWorld, Proposal]:
    """Version 2 superseded version 1, which is over; version 3 would bring it back."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.version(1))
    sunset = governed.now + 3 * DAY
    done = governed.grant(
        governed.version(2, compose_hash=NEXT, supersedes=1, sunset=sunset),
        rollback=[governed.version(3, supersedes=2, sunset=sunset, is_rollback=True)],
    )
    governed.warp_to(sunset)
    return governed, done


@pytest.mark.parametrize("runner", ["owner", "guardian"])
def test_p27_both_together_roll_back_at_once(upgraded: tuple[GovernedWorld, Proposal], runner: str) -> None:
    """One agrees, the other runs, either way round; no new delay; each step is announced."""
    world, done = upgraded
    first, second = (world.guardian, world.owner) if runner == "owner" else (world.owner, world.guardian)
    before = world.asked(), world.asked(compose_hash=NEXT)

    agreed = world.send(first, world.operator, "agreeToRollback", done.id)
    run = world.send(second, world.operator, "rollBack", done.id, done.content)

    assert (before, world.asked(), world.asked(compose_hash=NEXT)) == ((NO, GRANTED), GRANTED, NO)
    assert events_of(world.operator, agreed) == [("RollbackAgreed", {"id": done.id, "by": first})]
    assert events_of(world.operator, run) == [("ProposalRolledBack", {"id": done.id, "by": second})]
    assert world.state(done) is State.ROLLED_BACK
    again = world.refused(second, world.operator, "rollBack", done.id, done.content)
    assert again == ("UnexpectedState", done.id, State.ROLLED_BACK, State.EXECUTED)


@pytest.mark.parametrize("alone", ["owner", "guardian"])
def test_p27_neither_alone(upgraded: tuple[GovernedWorld, Proposal], alone: str) -> None:
    """Without an agreement, and with one's own only, it is refused."""
    world, done = upgraded
    account = getattr(world, alone)

    refusals = [world.refused(account, world.operator, "rollBack", done.id, done.content)]
    world.send(account, world.operator, "agreeToRollback", done.id)
    refusals.append(world.refused(account, world.operator, "rollBack", done.id, done.content))

    assert refusals == [("RollbackNotAgreed", done.id)] * 2
    assert world.operator.functions.rollbackAgreedBy(done.id).call() == account


def test_p27_nobody_else(upgraded: tuple[GovernedWorld, Proposal]) -> None:
    """A stranger neither agrees nor runs it, agreed or not."""
    world, done = upgraded
    world.send(world.owner, world.operator, "agreeToRollback", done.id)
    no = ("NeitherOwnerNorGuardian", world.stranger)

    assert world.refused(world.stranger, world.operator, "agreeToRollback", done.id) == no
    assert world.refused(world.stranger, world.operator, "rollBack", done.id, done.content) == no


def test_p27_the_agreement_of_a_former_holder_does_not_count(upgraded: tuple[GovernedWorld, Proposal]) -> None:
    """Who agreed must hold the role when it is run."""
    world, done = upgraded
    world.send(world.guardian, world.operator, "agreeToRollback", done.id)
    world.grant(world.on_self(Kind.GUARDIAN, word(world.stranger)))
    world.send(world.stranger, world.operator, "acceptGuardian")

    refusal = world.refused(world.owner, world.operator, "rollBack", done.id, done.content)

    assert refusal == ("RollbackNotAgreed", done.id)


def test_p27_only_what_was_announced_and_executed(governed: GovernedWorld) -> None:
    """Not before the execution, not with other content, and not where none was staged."""
    staged = governed.propose(governed.compose(NEXT), rollback=[governed.compose()])
    plain = governed.propose(governed.compose(b"\x01" * 32))
    operator, guardian, owner = governed.operator, governed.guardian, governed.owner

    refusals = [governed.refused(guardian, operator, "agreeToRollback", staged.id)]
    governed.execute(staged, at=plain.ready_at)
    governed.execute(plain)
    other = governed.content([governed.compose(NEXT)], [governed.compose(b"\x66" * 32)])
    for done in (staged, plain):
        governed.send(guardian, operator, "agreeToRollback", done.id)
    refusals.append(governed.refused(owner, operator, "rollBack", staged.id, other))
    refusals.append(governed.refused(owner, operator, "rollBack", plain.id, plain.content))

    other_id = bytes(operator.functions.proposalId(0, other).call())
    assert refusals == [
        ("UnexpectedState", staged.id, State.WAITING, State.EXECUTED),
        ("ContentMismatch", staged.id, other_id),
        ("NoRollback", plain.id),
    ]
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_p27_a_denial_stops_the_rollback_too(upgraded: tuple[GovernedWorld, Proposal]) -> None:
    """What was denied after the announcement does not come back by the side door."""
    world, done = upgraded
    world.deny(world.compose())
    denied_at = world.now
    world.send(world.guardian, world.operator, "agreeToRollback", done.id)

    refusal = world.refused(world.owner, world.operator, "rollBack", done.id, done.content)

    assert refusal == ("DeniedSince", Kind.COMPOSE_HASH, world.app.address, COMPOSE, denied_at)


def test_p27_a_proposal_cancelled_has_no_rollback(governed: GovernedWorld) -> None:
    """Nothing of it can be run."""
    staged = governed.propose(governed.compose(NEXT), rollback=[governed.compose()])
    governed.send(governed.owner, governed.operator, "cancel", staged.id)

    refusal = governed.refused(governed.guardian, governed.operator, "agreeToRollback", staged.id)

    assert refusal == ("UnexpectedState", staged.id, State.CANCELLED, State.EXECUTED)
    assert governed.operator.functions.rollbackAgreedBy(staged.id).call() == ZERO_ADDRESS
