"""P13: versions rise; sunset is enforced in the view, not by a transaction."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import COMPOSE, DAY, DEVICE, GRANTED, IMAGE, GovernedWorld, Kind, registers

NEXT = b"\xc2" * 32
NO = (False, "Compose hash not allowed")


@pytest.fixture
def first(governed: GovernedWorld) -> GovernedWorld:
    """Version 5 of the app is allowed."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.version(5))
    return governed


def test_p13_a_version_is_announced_whole_and_allowed(governed: GovernedWorld) -> None:
    """The event holds all of it; its record when and after what it came; nothing is in the plain list."""
    sets = (registers(1), registers(9, b"\x77" * 48))
    proposal = governed.propose(governed.version(5, register_sets=sets))
    receipt = governed.execute(proposal, at=proposal.ready_at)

    name, event = events_of(governed.app, receipt)[0]
    read = dict(event["version"])
    assert name == "VersionAdded"
    assert [tuple(each.values()) for each in read.pop("registers")] == list(sets)
    assert tuple(read.values()) == (5, COMPOSE, [IMAGE], 0, 0, False)
    functions = governed.app.functions
    assert functions.versionRecord(5).call() == (proposal.ready_at, 0, 0, False)
    assert (functions.newestVersion().call(), functions.versionOf(COMPOSE, IMAGE).call()) == (5, 5)
    assert not functions.allowedComposeHashes(COMPOSE).call()


@pytest.mark.parametrize("number", [4, 5])
def test_p13_a_number_does_not_fall_or_repeat(first: GovernedWorld, number: int) -> None:
    """Only a number above the newest is taken."""
    proposal = first.propose(first.version(number, compose_hash=NEXT))

    assert first.execution_refused(proposal, at=proposal.ready_at) == ("NumberNotRising", number, 5)


def test_p13_a_superseded_version_ends_by_itself(first: GovernedWorld) -> None:
    """Up to its last second both are allowed, then only the new one, with no transaction in between."""
    sunset = first.now + 10 * DAY
    first.grant(first.version(6, compose_hash=NEXT, supersedes=5, sunset=sunset))
    block = first.w3.eth.block_number

    ahead = first.allowed_at(sunset - 1), first.allowed_at(sunset), first.allowed_at(sunset, NEXT)
    first.warp_to(sunset - 1)
    both = first.asked(), first.asked(compose_hash=NEXT)
    first.warp_to(sunset)

    assert ahead == (GRANTED, NO, GRANTED)
    assert both == (GRANTED, GRANTED)
    assert (first.asked(), first.asked(compose_hash=NEXT)) == (NO, GRANTED)
    assert first.w3.eth.block_number == block + 2
    assert all(first.w3.eth.get_block_transaction_count(block + 1 + i) == 0 for i in range(2))


def test_p13_superseding_never_prolongs(first: GovernedWorld) -> None:
    """A version that was to end earlier ends earlier."""
    early = first.now + 5 * DAY
    first.deny(first.sunset(5, early))

    first.grant(first.version(6, compose_hash=NEXT, supersedes=5, sunset=early + 1))

    assert first.app.functions.versionRecord(5).call()[1] == early


def test_p13_an_end_moves_later_only_by_a_proposal_and_earlier_at_once(first: GovernedWorld) -> None:
    """Each path moves it to its own side; on the other side it is refused, with both times."""
    end = first.now + 20 * DAY
    first.deny(first.sunset(5, end))

    wrong = first.refused(first.guardian, first.operator, "deny", [first.sunset(5, end)])
    shorter = first.propose(first.sunset(5, end))
    wrong_too = first.execution_refused(shorter, at=shorter.ready_at)
    first.grant(first.sunset(5, end + 1))

    assert (wrong, wrong_too) == (("SunsetNotMoved", 5, end, end),) * 2
    assert first.app.functions.versionRecord(5).call()[1] == end + 1


@pytest.mark.parametrize(("offset", "lives"), [(-1, True), (0, False), (1, False)])
def test_p13_an_ended_version_stays_ended(first: GovernedWorld, offset: int, lives: bool) -> None:
    """In its last second it can be prolonged; from its end on it is over for good."""
    end = first.now + 5 * DAY
    first.deny(first.sunset(5, end))
    longer = first.propose(first.sunset(5, 0))

    if lives:
        first.execute(longer, at=end + offset)
    else:
        assert first.execution_refused(longer, at=end + offset) == ("VersionEnded", 5, end)

    assert first.app.functions.versionRecord(5).call()[1] == (0 if lives else end)


def test_p13_an_end_set_since_the_proposal_stands(first: GovernedWorld) -> None:
    """A later end proposed before the present one was set is not granted: the newer decision is the earlier end."""
    longer = first.propose(first.sunset(5, 0))
    sunset = first.now + 30 * DAY
    set_by = first.grant(first.version(6, compose_hash=NEXT, supersedes=5, sunset=sunset))

    refusal = first.execution_refused(longer)

    assert refusal == ("DeniedSince", Kind.SUNSET, first.app.address, (5).to_bytes(32, "big"), set_by.ready_at)
    assert first.app.functions.versionRecord(5).call()[1] == sunset


@pytest.mark.parametrize(("supersedes", "sunset"), [(0, 1), (4, 0), (6, 9), (7, 9)])
def test_p13_sunset_and_supersedes_come_together(governed: GovernedWorld, supersedes: int, sunset: int) -> None:
    """One without the other, and a version that supersedes itself or a later one, cannot be proposed."""
    content = governed.content([governed.version(6, supersedes=supersedes, sunset=sunset)])

    refusal = governed.refused(governed.owner, governed.operator, "propose", content)

    assert refusal == ("SunsetMisplaced", 6, supersedes, sunset)


def test_p13_an_unknown_version_is_not_superseded(first: GovernedWorld) -> None:
    """There must be one of that number."""
    proposal = first.propose(first.version(6, supersedes=4, sunset=first.now + DAY))

    assert first.execution_refused(proposal, at=proposal.ready_at) == ("VersionUnknown", 4)


@pytest.mark.parametrize("stated", [True, False])
def test_p13_a_rollback_is_marked_as_one(first: GovernedWorld, stated: bool) -> None:
    """Old content marked new, and new content marked old, are refused."""
    compose_hash = NEXT if stated else COMPOSE
    proposal = first.propose(first.version(6, compose_hash=compose_hash, is_rollback=stated))

    assert first.execution_refused(proposal, at=proposal.ready_at) == ("RollbackMisstated", 6, stated)


def test_p13_registers_end_with_their_version(governed: GovernedWorld) -> None:
    """Registers are allowed with their own compose hash only, and no longer than the version."""
    governed.grant(governed.image(), governed.version(1, register_sets=[registers(1)]))
    end = governed.now + DAY
    governed.deny(governed.sunset(1, end))

    answers = [
        governed.allowed_at(end - 1, registers=registers(1)),
        governed.allowed_at(end, registers=registers(1)),
        governed.allowed_at(end - 1, registers=registers(2)),
        governed.allowed_at(end - 1, registers=registers(1, b"\x01" * 48)),
    ]

    assert answers == [GRANTED, NO, (False, "Registers not allowed"), (False, "Registers not allowed")]


def test_p13_the_highest_number_is_the_last(governed: GovernedWorld) -> None:
    """Numbers have 48 bits: the highest is taken, one more is refused when it is proposed, and none comes after."""
    highest = (1 << 48) - 1
    beyond = governed.content([governed.version(highest + 1)])

    refusal = governed.refused(governed.owner, governed.operator, "propose", beyond)
    governed.grant(governed.image(), governed.version(highest))
    next_one = governed.propose(governed.version(highest, compose_hash=b"\x07" * 32))

    assert refusal == ("NumberTooHigh", highest + 1, highest)
    assert governed.app.functions.newestVersion().call() == highest
    assert governed.execution_refused(next_one, at=next_one.ready_at) == ("NumberNotRising", highest, highest)


def test_p13_the_newest_and_the_older_records_say_the_same(governed: GovernedWorld) -> None:
    """What is kept of a version reads alike before and after it is no longer the newest, its end included."""
    record = governed.app.functions.versionRecord
    governed.grant(governed.image(), governed.version(3))
    governed.deny(governed.sunset(3, governed.now + 90 * DAY))
    before = record(3).call(), governed.app.functions.endSetAt(3).call()

    governed.grant(governed.version(9, compose_hash=b"\x07" * 32))

    assert (record(3).call(), governed.app.functions.endSetAt(3).call()) == before
    assert record(9).call()[2:] == (3, False)
    assert governed.app.functions.versionNumbers(0, 10).call() == [9, 3]
    assert record(4).call() == (0, 0, 0, False)
