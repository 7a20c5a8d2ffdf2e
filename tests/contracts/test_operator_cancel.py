"""UpgradeOperator, cancel: owner and guardian, what is pending."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dstack.chain.operator import (
    Action,
    Kind,
    State,
    cancel_call,
    execute_call,
)
from dstack.errors import RefusedError
from tests.chain_world import COMPOSE, DELAY, WINDOW, ChainWorld, events_of, state_of


@pytest.mark.parametrize("who", ["owner", "guardian"])
@pytest.mark.parametrize("wait", [timedelta(), DELAY], ids=["waiting", "ready"])
def test_owner_and_guardian_cancel_what_is_pending(world: ChainWorld, who: str, wait: timedelta) -> None:
    """A cancelled proposal stays cancelled and cannot be executed."""
    account = getattr(world, who)
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    world.warp(wait + timedelta(seconds=1))

    receipt = world.call(cancel_call(proposal), account)

    world.warp(DELAY)
    assert events_of(world.operator, receipt) == [("ProposalCancelled", {"id": proposal.id, "by": account.address})]
    assert state_of(world, proposal) is State.CANCELLED
    with pytest.raises(RefusedError, match="want it Ready, it is Cancelled"):
        world.call(execute_call(proposal))


def test_what_is_over_cannot_be_cancelled(world: ChainWorld) -> None:
    """An executed, a cancelled and an expired proposal keep their state; history is not rewritten."""
    action = world.on_app(Kind.COMPOSE_HASH, COMPOSE)
    executed, cancelled, expired = world.grant(action), world.propose(action), world.propose(action)
    world.call(cancel_call(cancelled))
    world.warp(DELAY + WINDOW)

    for proposal, name in ((executed, "Executed"), (cancelled, "Cancelled"), (expired, "Expired")):
        with pytest.raises(RefusedError, match=f"want it Waiting or Ready, it is {name}"):
            world.call(cancel_call(proposal))


def test_a_stranger_cannot_cancel(world: ChainWorld) -> None:
    """Only owner and guardian stop a grant."""
    proposal = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))

    with pytest.raises(RefusedError, match=f"{world.stranger.address}: want the owner or the guardian"):
        world.call(cancel_call(proposal), world.stranger)


def test_the_guardian_can_cancel_its_own_replacement(world: ChainWorld) -> None:
    """A power stated in the interface: a guardian gone bad stops every grant, but causes none."""
    heir = bytes.fromhex(world.stranger.address[2:])
    change = world.propose(Action.of(Kind.GUARDIAN, world.operator.address, heir))

    world.call(cancel_call(change), world.guardian)

    assert state_of(world, change) is State.CANCELLED
