"""P10: a freeze is per app, at most 7 days, and renewing it before a cool-down needs the grant path."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import COOL_DOWN, DEVICE, FREEZE, GRANTED, GovernedWorld, Kind


@pytest.fixture
def running(governed: GovernedWorld) -> GovernedWorld:
    """The app gets keys."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose())
    return governed


def test_p10_a_freeze_lasts_seven_days_to_the_second(running: GovernedWorld) -> None:
    """From its own block on no keys, until exactly seven days later; the operator knows the end in advance."""
    receipt = running.deny(running.freeze())
    start = running.now
    ((_, frozen), _) = events_of(running.kms, receipt)

    ahead = running.allowed_at(start + FREEZE - 1), running.allowed_at(start + FREEZE)
    at_once = running.asked()
    running.warp_to(start + FREEZE - 1)
    last = running.asked()
    running.warp_to(start + FREEZE)

    assert frozen == {"appId": running.app.address, "previous": 0, "until": start + FREEZE}
    assert (at_once, last) == ((False, "App is frozen"),) * 2
    assert ahead == ((False, "App is frozen"), GRANTED)
    assert running.asked() == GRANTED


@pytest.mark.parametrize("who", ["guardian", "owner"])
def test_p10_the_deny_path_waits_for_the_cool_down(running: GovernedWorld, who: str) -> None:
    """Until seven days after the end of the last freeze neither owner nor guardian can freeze it again."""
    running.deny(running.freeze())
    start = running.now
    until = start + FREEZE + COOL_DOWN
    account = getattr(running, who)

    refusals = [
        running.refused(account, running.operator, "deny", [running.freeze()], at=at)
        for at in (start + 1, start + FREEZE, until - 1)
    ]
    running.deny(running.freeze(), by=account, at=until)

    assert refusals == [("FreezeTooSoon", running.app.address, until)] * 3
    assert running.kms.functions.frozenUntil(running.app.address).call() == until + FREEZE


def test_p10_not_twice_in_one_transaction(running: GovernedWorld) -> None:
    """A batch cannot add one freeze to the other."""
    refusal = running.refused(running.guardian, running.operator, "deny", [running.freeze(), running.freeze()])

    assert refusal[:2] == ("FreezeTooSoon", running.app.address)
    assert running.asked() == GRANTED


def test_p10_a_freeze_concerns_one_app(running: GovernedWorld) -> None:
    """Freezing one app neither freezes another nor starts its cool-down."""
    other = running.own_app(running.stranger).address
    running.deny(running.freeze())

    running.deny(running.freeze(app=other))

    until = running.kms.functions.frozenUntil
    assert until(other).call() == running.now + FREEZE
    assert until(running.stranger).call() == 0


def test_p10_renewing_takes_a_proposal_and_its_delay(running: GovernedWorld) -> None:
    """The grant path can freeze on, for seven days more, and then the cool-down starts anew."""
    renewal = running.propose(running.freeze(Kind.FREEZE_RENEWAL))
    running.deny(running.freeze())

    running.execute(renewal, at=renewal.ready_at)

    end = renewal.ready_at + FREEZE
    assert running.kms.functions.frozenUntil(running.app.address).call() == end
    refusal = running.refused(running.guardian, running.operator, "deny", [running.freeze()], at=end)
    assert refusal == ("FreezeTooSoon", running.app.address, end + COOL_DOWN)


def test_p10_ending_a_freeze_takes_a_proposal(running: GovernedWorld) -> None:
    """A grant of kind App ends it; the cool-down then counts from that end."""
    running.deny(running.freeze())

    ending = running.grant(running.freeze(Kind.APP))

    assert running.asked() == GRANTED
    refusal = running.refused(running.guardian, running.operator, "deny", [running.freeze()])
    assert refusal == ("FreezeTooSoon", running.app.address, ending.ready_at + COOL_DOWN)


def test_p10_kms_auth_itself_freezes_at_most_seven_days(governed: GovernedWorld) -> None:
    """Whoever owns it: not in the past, not further ahead, and a running freeze does not become shorter."""
    kms = governed.proxy("KmsAuth", "initialize", governed.owner, governed.app_implementation)
    app, now = governed.app.address, governed.now + 100

    def refused(until: int, at: int) -> tuple[object, ...]:
        return governed.refused(governed.owner, kms, "freezeApp", app, until, at=at)

    assert refused(now, now) == ("FreezeOutOfRange", now, now + 1, now + FREEZE)
    assert refused(now + 1 + FREEZE + 1, now + 1) == ("FreezeOutOfRange", now + FREEZE + 2, now + 2, now + 1 + FREEZE)
    governed.send(governed.owner, kms, "freezeApp", app, now + 2 + FREEZE, at=now + 2)
    assert refused(now + FREEZE, now + 3) == ("FreezeOutOfRange", now + FREEZE, now + 2 + FREEZE, now + 3 + FREEZE)
    assert governed.refused(governed.owner, kms, "freezeApp", "0x" + "00" * 20, now + FREEZE)[0] == "ZeroRefused"
