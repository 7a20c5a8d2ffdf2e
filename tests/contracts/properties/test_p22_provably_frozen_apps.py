"""P22: an app can be made provably frozen: no grant is possible any more, and a view says so."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import (
    DAY,
    DEVICE,
    GRANTED,
    ON,
    Action,
    GovernedWorld,
    Kind,
    word,
)

NEXT = b"\xc2" * 32


@pytest.fixture
def frozen(governed: GovernedWorld) -> GovernedWorld:
    """The app has a version and a device, and is frozen for good."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.version(1))
    governed.deny(governed.sunset(1, governed.now + 300 * DAY))
    governed.grant(governed.on_app(Kind.FREEZE_FOR_GOOD, ON))
    return governed


def grants(world: GovernedWorld) -> dict[str, Action]:
    """Everything that could be granted to the app."""
    return {
        "compose hash": world.compose(NEXT),
        "device": world.on_app(Kind.DEVICE, NEXT),
        "any device": world.on_app(Kind.ANY_DEVICE, ON),
        "outdated TCB": world.on_app(Kind.OUTDATED_TCB, word(world.now + 30 * DAY)),
        "version": world.version(2, compose_hash=NEXT),
        "rollback": world.version(2, is_rollback=True),
        "sunset": world.sunset(1, 0),
    }


GRANTS = ["compose hash", "device", "any device", "outdated TCB", "version", "rollback", "sunset"]


@pytest.mark.parametrize("name", GRANTS)
def test_p22_no_grant_is_possible(frozen: GovernedWorld, name: str) -> None:
    """A proposal of any grant to the app fails on execution."""
    proposal = frozen.propose(grants(frozen)[name])

    assert frozen.execution_refused(proposal, at=proposal.ready_at) == ("FrozenForGood",)


def test_p22_no_new_code_is_possible(frozen: GovernedWorld) -> None:
    """Freezing for good gives contract upgrades up with it."""
    proposal = frozen.propose(frozen.on_app(Kind.IMPLEMENTATION_UPGRADE, word(frozen.app_implementation)))

    refusal = frozen.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("Error", "Upgrades are permanently disabled")


def test_p22_views_and_events_say_so(governed: GovernedWorld) -> None:
    """Both views turn, and both events name it."""
    functions = governed.app.functions
    before = functions.frozenForGood().call(), functions.upgradesDisabled().call()
    proposal = governed.propose(governed.on_app(Kind.FREEZE_FOR_GOOD, ON))

    receipt = governed.execute(proposal, at=proposal.ready_at)

    names = [name for name, _ in events_of(governed.app, receipt) if name != "PolicyChanged"]
    assert (before, names) == ((False, False), ["AppFrozenForGood", "UpgradesDisabled"])
    assert (functions.frozenForGood().call(), functions.upgradesDisabled().call()) == (True, True)


def test_p22_what_waited_or_was_staged_fails_too(governed: GovernedWorld) -> None:
    """Neither a Ready proposal nor a staged rollback grants afterwards."""
    governed.grant(governed.version(1))
    done = governed.grant(governed.version(2, compose_hash=NEXT), rollback=[governed.version(3, is_rollback=True)])
    waiting = governed.propose(governed.compose(NEXT))
    governed.grant(governed.on_app(Kind.FREEZE_FOR_GOOD, ON))
    governed.send(governed.guardian, governed.operator, "agreeToRollback", done.id)

    assert governed.execution_refused(waiting, at=governed.now + 1) == ("FrozenForGood",)
    rollback = governed.refused(governed.owner, governed.operator, "rollBack", done.id, done.content)
    assert rollback == ("FrozenForGood",)


def test_p22_denials_stay_possible_and_what_runs_goes_on(frozen: GovernedWorld) -> None:
    """It still gets keys until it is denied: version, device, any device, TCB, the whole app."""
    before = frozen.asked()

    frozen.deny(
        frozen.compose(),
        frozen.on_app(Kind.DEVICE, DEVICE),
        frozen.on_app(Kind.ANY_DEVICE, ON),
        frozen.on_app(Kind.OUTDATED_TCB, ON),
        frozen.sunset(1, 0),
        frozen.freeze(),
    )

    assert (before, frozen.asked()) == (GRANTED, (False, "App is frozen"))


def test_p22_an_owner_without_an_operator_is_bound_too(governed: GovernedWorld) -> None:
    """The rule is the app's, not the operator's: its direct owner cannot grant either."""
    app = governed.own_app(governed.owner)
    governed.send(governed.owner, app, "freezeForGood")

    refusals = [
        governed.refused(governed.owner, app, "addComposeHash", NEXT),
        governed.refused(governed.owner, app, "addDevice", NEXT),
        governed.refused(governed.owner, app, "setAllowAnyDevice", True),
        governed.refused(governed.owner, app, "setRequireTcbUpToDate", False),
        governed.refused(governed.owner, app, "tolerateOutdatedTcb", governed.now + DAY),
    ]

    assert refusals == [("FrozenForGood",)] * 5
    governed.send(governed.owner, app, "setAllowAnyDevice", False)
    governed.send(governed.owner, app, "setRequireTcbUpToDate", True)
