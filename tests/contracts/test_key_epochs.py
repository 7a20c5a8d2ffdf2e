"""Epochs of keys in KmsAuth: one after the other, each served on for a while, and never again."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import DAY, GovernedWorld, Kind, word

SHORTEST, LONGEST = DAY, 90 * DAY
FAR = (1 << 64) - 1


def epoch(world: GovernedWorld) -> tuple[int, int, int]:
    """Current epoch, the one before, and until when that is served."""
    current, previous, until = world.kms.functions.keyEpoch().call()
    return current, previous, until


def served(world: GovernedWorld, at: int) -> list[int]:
    """The epochs whose keys are given at a time."""
    asked = (0, 1, 2, 3, FAR)
    return [number for number in asked if world.kms.functions.isKeyEpochServed(number, at).call()]


def test_it_begins_with_epoch_0(governed: GovernedWorld) -> None:
    """Without any rotation only epoch 0 is served, at whatever time."""
    assert epoch(governed) == (0, 0, 0)
    assert served(governed, governed.now) == served(governed, FAR) == [0]


def test_a_rotation_serves_two_epochs_for_a_while(governed: GovernedWorld) -> None:
    """The next epoch begins with the execution; the one before ends by itself, in the second announced."""
    proposal = governed.grant(governed.key_epoch(1, 30 * DAY))
    until = proposal.ready_at + 30 * DAY

    assert epoch(governed) == (1, 0, until)
    assert served(governed, until - 1) == [0, 1]
    assert served(governed, until) == [1]


def test_a_rotation_tells_all_of_itself(governed: GovernedWorld) -> None:
    """Its events hold the number before and after, and until when the one before is served."""
    proposal = governed.propose(governed.key_epoch(1))
    receipt = governed.execute(proposal, at=proposal.ready_at)

    policy = bytes(governed.w3.keccak(text="key-epoch"))
    until = proposal.ready_at + DAY
    assert events_of(governed.kms, receipt) == [
        ("KeyEpochBegan", {"previous": 0, "current": 1, "previousServedUntil": until}),
        ("PolicyReplaced", {"policy": policy, "previous": word(0), "current": word(1)}),
        (
            "PolicyChanged",
            {"actor": governed.operator.address, "policy": policy, "value": word(1), "enabled": True},
        ),
    ]


@pytest.mark.parametrize("number", [0, 2, 7, FAR])
def test_numbers_rise_by_one(governed: GovernedWorld, number: int) -> None:
    """No epoch is left out, begun again, or gone back to."""
    kms = governed.proxy("KmsAuth", "initialize", governed.owner, governed.app_implementation)

    assert governed.refused(governed.owner, kms, "rotateKeys", number, DAY) == ("EpochNotNext", number, 1)


@pytest.mark.parametrize("window", [0, SHORTEST - 1, LONGEST + 1, FAR])
def test_the_window_is_bounded(governed: GovernedWorld, window: int) -> None:
    """Apps have a day at least, and old keys go on for 90 days at most, whoever owns the contract."""
    kms = governed.proxy("KmsAuth", "initialize", governed.owner, governed.app_implementation)

    refusal = governed.refused(governed.owner, kms, "rotateKeys", 1, window)

    assert refusal == ("EpochWindowOutOfRange", window, SHORTEST, LONGEST)


@pytest.mark.parametrize("window", [SHORTEST, LONGEST])
def test_the_bounds_are_allowed(governed: GovernedWorld, window: int) -> None:
    """A day exactly, and 90 days exactly."""
    proposal = governed.grant(governed.key_epoch(1, window))

    assert epoch(governed) == (1, 0, proposal.ready_at + window)


def test_only_the_owner_rotates(governed: GovernedWorld) -> None:
    """Under the operator neither its owner nor its guardian nor a stranger does."""
    for account in (governed.owner, governed.guardian, governed.stranger):
        refusal = governed.refused(account, governed.kms, "rotateKeys", 1, DAY)
        assert refusal == ("OwnableUnauthorizedAccount", account)


def test_two_rotations_in_one_proposal_cut_nobody_off(governed: GovernedWorld) -> None:
    """While an epoch is served on no other begins, so none is skipped by a batch: all of it fails."""
    both = governed.propose(governed.key_epoch(1), governed.key_epoch(2))

    refusal = governed.execution_refused(both, at=both.ready_at)

    assert refusal == ("PreviousEpochServed", both.ready_at + DAY)
    assert epoch(governed) == (0, 0, 0)


def test_the_next_rotation_waits_for_the_end_of_the_window(governed: GovernedWorld) -> None:
    """A second early it fails, in that very second it does not; the epoch before last is not served any more."""
    first = governed.grant(governed.key_epoch(1, 9 * DAY))
    second = governed.propose(governed.key_epoch(2))
    until = first.ready_at + 9 * DAY

    early = governed.execution_refused(second, at=until - 1)
    governed.execute(second, at=until)

    assert early == ("PreviousEpochServed", until)
    assert epoch(governed) == (2, 1, until + DAY)
    assert served(governed, until) == [1, 2]


def test_a_rotation_waits_as_long_as_an_upgrade(governed: GovernedWorld) -> None:
    """It cannot be undone and concerns every app, so it takes the longest delay."""
    governed.grant(governed.delay(2, 9 * DAY))

    proposal = governed.propose(governed.key_epoch(1))

    assert proposal.ready_at - proposal.proposed_at == 9 * DAY


def test_a_rotation_is_not_denied(governed: GovernedWorld) -> None:
    """Neither guardian nor owner can end an epoch at once: what is sealed under it would be lost."""
    for account in (governed.owner, governed.guardian):
        refusal = governed.refused(account, governed.operator, "deny", [governed.key_epoch(1)])
        assert refusal == ("NotDeniable", Kind.KEY_EPOCH)
