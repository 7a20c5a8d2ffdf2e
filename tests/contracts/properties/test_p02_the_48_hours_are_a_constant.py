"""P2: 48 h is a constant in code; the configured delay can only be longer."""

from __future__ import annotations

import pytest
from web3 import Web3
from web3.exceptions import ContractLogicError

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import encode_creation
from tests.governed_world import (
    DAY,
    MIN_DELAY,
    YEAR,
    DelayClass,
    GovernedWorld,
    decoded_error,
)


def creation_refused(world: GovernedWorld, *delays: int) -> tuple[object, ...]:
    """Why an operator with these delays cannot be deployed."""
    creation = encode_creation("UpgradeOperator", world.owner, world.guardian, delays)
    with pytest.raises(ContractLogicError) as refusal:
        world.w3.eth.call({"from": world.stranger, "data": Web3.to_hex(creation)})
    return decoded_error(refusal.value)


def test_p02_min_delay_is_48_hours_and_nothing_sets_it(governed: GovernedWorld) -> None:
    """It is pure code: the contract that answers has no function and no storage for it."""
    artifact = load_artifact("UpgradeOperator")
    writing = [e["name"] for e in artifact.abi if e["type"] == "function" and e["stateMutability"] != "view"]

    assert governed.operator.functions.MIN_DELAY().call() == 172_800
    assert not [name for name in writing if "elay" in name]


@pytest.mark.parametrize("delay_class", DelayClass)
@pytest.mark.parametrize("seconds", [0, MIN_DELAY - 1, YEAR + 1])
def test_p02_no_operator_is_born_with_another(governed: GovernedWorld, delay_class: DelayClass, seconds: int) -> None:
    """Below 48 hours, or above a year, no delay of any class is taken."""
    delays = [MIN_DELAY] * 3
    delays[delay_class] = seconds

    assert creation_refused(governed, *delays) in (
        ("DelayOutOfRange", seconds, MIN_DELAY, YEAR),
        ("UpgradesNotLongest", *delays),
    )


@pytest.mark.parametrize("delay_class", DelayClass)
def test_p02_no_proposal_sets_one_second_less(governed: GovernedWorld, delay_class: DelayClass) -> None:
    """48 hours can be granted, one second less cannot, and the delays stay what they were."""
    proposal = governed.propose(governed.delay(delay_class, MIN_DELAY - 1))

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)
    governed.grant(governed.delay(delay_class, MIN_DELAY))

    assert refusal == ("DelayOutOfRange", MIN_DELAY - 1, MIN_DELAY, YEAR)
    assert tuple(governed.operator.functions.delays().call()) == (MIN_DELAY,) * 3


def test_p02_a_year_is_the_most(governed: GovernedWorld) -> None:
    """A delay of a year is taken, one of a second more is not: no delay locks everybody out for ever."""
    longer = governed.propose(governed.delay(DelayClass.UPGRADES, YEAR + 1))
    governed.grant(governed.delay(DelayClass.UPGRADES, YEAR))

    assert governed.execution_refused(longer) == ("DelayOutOfRange", YEAR + 1, MIN_DELAY, YEAR)
    assert tuple(governed.operator.functions.delays().call()) == (2 * DAY, 2 * DAY, YEAR)
