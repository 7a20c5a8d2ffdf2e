"""UpgradeOperator, accept: roles are handed on in two steps."""

from __future__ import annotations

import pytest

from dstack.chain.operator import (
    Action,
    Kind,
    cancel_call,
)
from dstack.errors import RefusedError
from tests.chain_world import COMPOSE, WINDOW, ChainWorld, events_of, operator_reader, restored


def now(world: ChainWorld) -> int:
    """The time of the newest block."""
    return int(world.w3.eth.get_block("latest")["timestamp"])


def test_a_new_guardian_takes_over_only_by_the_grant_path_and_its_own_will(world: ChainWorld) -> None:
    """After acceptance the old guardian has no power and the new one has it; the change is announced."""
    heir = bytes.fromhex(world.stranger.address[2:])
    world.grant(Action.of(Kind.GUARDIAN, world.operator.address, heir))
    other = world.propose(world.on_app(Kind.COMPOSE_HASH, COMPOSE))
    before = operator_reader(world).guardian()
    receipt = world.send(world.stranger, world.operator, "acceptGuardian")

    with pytest.raises(RefusedError, match="want the owner or the guardian"):
        world.call(cancel_call(other), world.guardian)
    world.call(cancel_call(other), world.stranger)
    assert before == world.guardian.address
    assert events_of(world.operator, receipt) == [
        ("GuardianChanged", {"previous": world.guardian.address, "current": world.stranger.address})
    ]


def test_ownership_of_the_operator_moves_by_the_grant_path_in_two_steps_and_never_ends(world: ChainWorld) -> None:
    """The heir must accept; handing on directly and renouncing are refused."""
    with pytest.raises(RefusedError, match="ownership is handed on by a proposal only"):
        world.send(world.owner, world.operator, "transferOwnership", world.stranger.address)
    world.grant(Action.of(Kind.OWNER, world.operator.address, bytes.fromhex(world.stranger.address[2:])))
    before = operator_reader(world).owner()
    world.send(world.stranger, world.operator, "acceptOwnership")

    assert (before, operator_reader(world).owner()) == (world.owner.address, world.stranger.address)
    with pytest.raises(RefusedError, match="ownership cannot be renounced"):
        world.send(world.stranger, world.operator, "renounceOwnership")


@pytest.mark.parametrize(("kind", "function"), [(Kind.OWNER, "acceptOwnership"), (Kind.GUARDIAN, "acceptGuardian")])
def test_only_who_was_named_accepts_and_within_14_days(world: ChainWorld, kind: Kind, function: str) -> None:
    """Nobody else can take a role, nobody can take one twice, and a nomination forgotten is void."""
    heir = world.stranger
    world.grant(Action.of(kind, world.operator.address, bytes.fromhex(heir.address[2:])))
    executed = now(world)

    with pytest.raises(RefusedError, match=f"{world.owner.address}: not named for this role"):
        world.send(world.owner, world.operator, function)
    with restored(world.chain):
        world.warp_to(executed + int(WINDOW.total_seconds()) - 2)
        world.send(heir, world.operator, function)
        with pytest.raises(RefusedError, match=f"{heir.address}: not named for this role"):
            world.send(heir, world.operator, function)
    world.warp_to(executed + int(WINDOW.total_seconds()))
    with pytest.raises(RefusedError, match=f"{heir.address}: not named for this role"):
        world.send(heir, world.operator, function)
