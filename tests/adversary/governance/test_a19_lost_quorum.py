"""A19: a multisig that lost its quorum: as owner it can never sign again."""

from __future__ import annotations

import pytest

from tests.governed_world import DAY, DEVICE, GRANTED, GovernedWorld, Kind, State, word
from tests.hostile_contracts import hostile

NEXT = b"\xc2" * 32


@pytest.fixture
def orphaned(governed: GovernedWorld) -> GovernedWorld:
    """Version 1 runs, version 2 replaces it in ten days, and the owner is a contract that does nothing any more."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.version(1))
    governed.grant(governed.version(2, compose_hash=NEXT, supersedes=1, sunset=governed.now + 10 * DAY))
    dead = hostile("CallingBack").deploy(governed, governed.stranger, False)
    governed.grant(governed.on_self(Kind.OWNER, word(dead.address)))
    accept = governed.operator.encode_abi("acceptOwnership")
    governed.send(governed.stranger, dead, "forward", governed.operator.address, accept)
    return governed


def test_a19_what_runs_goes_on_and_what_ends_ends(orphaned: GovernedWorld) -> None:
    """Nobody is needed for either."""
    now = orphaned.asked(), orphaned.asked(compose_hash=NEXT)

    orphaned.warp_to(orphaned.now + 10 * DAY)

    assert now == (GRANTED, GRANTED)
    assert orphaned.asked() == (False, "Compose hash not allowed")
    assert orphaned.asked(compose_hash=NEXT) == GRANTED


def test_a19_the_guardian_still_denies(orphaned: GovernedWorld) -> None:
    """A bad version is stopped without the owner, for good: nobody can grant it anew."""
    orphaned.deny(orphaned.compose(NEXT))

    assert orphaned.asked(compose_hash=NEXT) == (False, "Compose hash not allowed")


def test_a19_there_is_no_back_door(orphaned: GovernedWorld) -> None:
    """Neither guardian nor former owner nor a stranger takes the place of the owner."""
    content = orphaned.content([orphaned.compose()])
    for account in (orphaned.guardian, orphaned.owner, orphaned.stranger):
        refusals = [
            orphaned.refused(account, orphaned.operator, "propose", content),
            orphaned.refused(account, orphaned.operator, "acceptOwnership"),
            orphaned.refused(account, orphaned.operator, "transferOwnership", account),
        ]
        assert refusals == [
            ("OwnableUnauthorizedAccount", account),
            ("NotNominated", account),
            ("OnlyByProposal",),
        ]


def test_a19_what_was_proposed_before_is_executed_without_the_owner(governed: GovernedWorld) -> None:
    """The last proposal of a multisig, such as naming its successor, needs no second signature of it."""
    heir = governed.propose(governed.on_self(Kind.OWNER, word(governed.stranger)))

    governed.execute(heir, by=governed.guardian, at=heir.ready_at)
    governed.send(governed.stranger, governed.operator, "acceptOwnership")

    assert governed.state(heir) is State.EXECUTED
    assert governed.operator.functions.owner().call() == governed.stranger
