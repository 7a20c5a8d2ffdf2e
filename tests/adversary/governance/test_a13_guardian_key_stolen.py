"""A13: guardian key stolen. The thief is the guardian account; the owner is honest."""

from __future__ import annotations

from tests.governed_world import (
    COMPOSE,
    COOL_DOWN,
    DAY,
    DEVICE,
    FORCED_DELAY,
    FREEZE,
    GRANTED,
    ON,
    GovernedWorld,
    Kind,
    State,
    word,
)


def test_a13_nothing_becomes_allowed(governed: GovernedWorld) -> None:
    """Of the calls that grant or prepare a grant, every one is refused to the guardian."""
    content = governed.content([governed.compose()])
    waiting = governed.propose(governed.compose())
    done = governed.grant(governed.version(1), rollback=[governed.compose(b"\x01" * 32)])
    governed.send(governed.guardian, governed.operator, "agreeToRollback", done.id)
    thief = governed.guardian

    refusals = [
        governed.refused(thief, governed.operator, "propose", content),
        governed.refused(thief, governed.operator, "adopt", governed.app.address),
        governed.refused(thief, governed.operator, "rollBack", done.id, done.content),
        governed.refused(thief, governed.operator, "acceptOwnership"),
        governed.refused(thief, governed.app, "addComposeHash", b"\x01" * 32),
        governed.refused(thief, governed.kms, "unfreezeApp", governed.app.address),
        governed.refused(thief, governed.operator, "deny", [governed.on_kms(Kind.CONTRACT_UPGRADES, ON)]),
    ]

    assert refusals == [
        ("OwnableUnauthorizedAccount", thief),
        ("OwnableUnauthorizedAccount", thief),
        ("RollbackNotAgreed", done.id),
        ("NotNominated", thief),
        ("OwnableUnauthorizedAccount", thief),
        ("OwnableUnauthorizedAccount", thief),
        ("NotForGuardian", Kind.CONTRACT_UPGRADES),
    ]
    assert governed.state(waiting) is State.READY


def test_a13_what_it_stops_starts_again(governed: GovernedWorld) -> None:
    """It denies everything; one new proposal, which it does not cancel in time, restores all of it."""
    everything = [governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose()]
    governed.grant(*everything)
    governed.deny(*everything, governed.freeze())
    stopped = governed.asked()

    governed.grant(*everything, governed.freeze(Kind.APP))

    assert (stopped, governed.asked()) == ((False, "App is frozen"), GRANTED)


def test_a13_freezes_leave_the_app_free_half_of_the_time(governed: GovernedWorld) -> None:
    """Frozen as often as it can: seven days off, seven days on."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose())
    seen = []
    for _ in range(2):
        governed.deny(governed.freeze())
        start = governed.now
        for at in (start + FREEZE - 1, start + FREEZE, start + FREEZE + COOL_DOWN - 1):
            governed.warp_to(at)
            seen.append(governed.asked()[0])
        refusal = governed.refused(governed.guardian, governed.operator, "deny", [governed.freeze()], at=at)
        assert refusal == ("FreezeTooSoon", governed.app.address, at + 1)

    assert seen == [False, True, True] * 2


def test_a13_it_stops_everything_for_a_week_and_no_longer(governed: GovernedWorld) -> None:
    """It cancels each grant and each replacement, but not the forced one; after that all grants go through again."""
    forced = governed.propose(governed.force_guardian(governed.stranger))
    for grant in (governed.compose(), governed.on_self(Kind.GUARDIAN, word(governed.stranger))):
        stopped = governed.propose(grant)
        governed.send(governed.guardian, governed.operator, "cancel", stopped.id, at=stopped.ready_at - 1)
    refusal = governed.refused(governed.guardian, governed.operator, "cancel", forced.id)

    governed.execute(forced, at=forced.proposed_at + FORCED_DELAY)
    governed.send(governed.stranger, governed.operator, "acceptGuardian")
    governed.grant(governed.compose())

    assert refusal == ("NotForGuardian", Kind.FORCED_GUARDIAN)
    assert governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_a13_it_can_block_its_replacement_by_the_short_way(governed: GovernedWorld) -> None:
    """Cancelling every proposal of the usual kind, it stays in office, and causes no grant."""
    for _ in range(3):
        heir = governed.propose(governed.on_self(Kind.GUARDIAN, word(governed.stranger)))
        governed.send(governed.guardian, governed.operator, "cancel", heir.id)
        assert governed.state(heir) is State.CANCELLED

    assert governed.operator.functions.guardian().call() == governed.guardian
    assert governed.allowed_at(governed.now + 300 * DAY)[0] is False


def test_a13_one_execution_ends_its_power(governed: GovernedWorld) -> None:
    """A replacement that it misses, once accepted, leaves it a stranger."""
    governed.grant(governed.on_self(Kind.GUARDIAN, word(governed.stranger)))
    governed.send(governed.stranger, governed.operator, "acceptGuardian")

    refusal = governed.refused(governed.guardian, governed.operator, "deny", [governed.compose()])

    assert refusal == ("NeitherOwnerNorGuardian", governed.guardian)
