"""P21: contract upgrades take the longest delay and can be given up for good."""

from __future__ import annotations

import pytest

from tests.governed_world import DAY, MIN_DELAY, ON, Action, DelayClass, GovernedWorld, Kind, State, word


def test_p21_no_delay_is_longer_than_that_of_upgrades(governed: GovernedWorld) -> None:
    """Neither of the others can be raised above it, nor it be lowered below one of them."""
    too_long = [governed.propose(governed.delay(each, MIN_DELAY + 1)) for each in (DelayClass.POLICY, DelayClass.ROLES)]
    refusals = [governed.execution_refused(each, at=too_long[1].ready_at + i) for i, each in enumerate(too_long)]

    governed.grant(governed.delay(DelayClass.UPGRADES, 5 * DAY), governed.delay(DelayClass.ROLES, 5 * DAY))
    lower = governed.propose(governed.delay(DelayClass.UPGRADES, 4 * DAY))
    refusals.append(governed.execution_refused(lower, at=lower.ready_at))

    assert refusals == [
        ("UpgradesNotLongest", MIN_DELAY + 1, MIN_DELAY, MIN_DELAY),
        ("UpgradesNotLongest", MIN_DELAY, MIN_DELAY + 1, MIN_DELAY),
        ("UpgradesNotLongest", MIN_DELAY, 5 * DAY, 4 * DAY),
    ]


@pytest.mark.parametrize("name", ["app", "kms", "new apps"])
def test_p21_code_changes_wait_that_delay(governed: GovernedWorld, name: str) -> None:
    """An upgrade of a proxy and of the code of new apps, to the second."""
    governed.grant(governed.delay(DelayClass.UPGRADES, 9 * DAY))
    code = word(governed.kms_implementation if name == "kms" else governed.app_implementation)
    action = {
        "app": governed.on_app(Kind.IMPLEMENTATION_UPGRADE, code),
        "kms": governed.on_kms(Kind.IMPLEMENTATION_UPGRADE, code),
        "new apps": governed.on_kms(Kind.APP_IMPLEMENTATION, code),
    }[name]
    proposal = governed.propose(action)

    early = governed.execution_refused(proposal, at=proposal.proposed_at + 9 * DAY - 1)
    governed.execute(proposal, at=proposal.proposed_at + 9 * DAY)

    assert early == ("UnexpectedState", proposal.id, State.WAITING, State.READY)


@pytest.mark.parametrize("name", ["app", "kms"])
def test_p21_upgrades_given_up_never_come_back(governed: GovernedWorld, name: str) -> None:
    """The owner gives them up at once; a waiting upgrade fails, a later one too, and no action undoes it."""
    contract = getattr(governed, name)
    code = word(governed.app_implementation if name == "app" else governed.kms_implementation)
    upgrade = Action(Kind.IMPLEMENTATION_UPGRADE, contract.address, code)
    waiting = governed.propose(upgrade)
    giving_up = Action(Kind.CONTRACT_UPGRADES, contract.address, ON)

    governed.deny(giving_up, by=governed.owner)

    later = governed.propose(upgrade)
    disabled = ("Error", "Upgrades are permanently disabled")
    assert governed.execution_refused(waiting, at=later.ready_at) == disabled
    assert governed.execution_refused(later) == disabled
    assert contract.functions.upgradesDisabled().call()
    content = governed.content([giving_up])
    refusal = governed.refused(governed.owner, governed.operator, "propose", content)
    assert refusal == ("NotGrantable", Kind.CONTRACT_UPGRADES)


def test_p21_the_operator_itself_is_no_proxy(governed: GovernedWorld) -> None:
    """Its implementation slot is empty and it cannot be upgraded by a proposal."""
    slot = int("360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc", 16)
    code = word(governed.app_implementation)
    content = governed.content([governed.on_self(Kind.IMPLEMENTATION_UPGRADE, code)])

    refusal = governed.refused(governed.owner, governed.operator, "propose", content)

    assert bytes(governed.w3.eth.get_storage_at(governed.operator.address, slot)) == bytes(32)
    assert refusal == ("TargetNotGoverned", Kind.IMPLEMENTATION_UPGRADE, governed.operator.address)
