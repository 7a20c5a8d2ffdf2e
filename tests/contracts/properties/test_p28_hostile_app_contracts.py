"""P28: an app contract that reverts, burns gas or answers garbage yields (false, reason): no revert, no grant.

KmsAuth's side in every form of garbage: tests/contracts/test_hostile_apps.py. Here: through the operator, and together.
"""

from __future__ import annotations

from typing import Any

import pytest
from web3.contract import Contract
from web3.exceptions import ContractLogicError, Web3RPCError

from tests.governed_world import DEVICE, GRANTED, GovernedWorld, Kind
from tests.hostile_contracts import hostile

WAYS = {
    "reverts": 0,
    "burns all gas": 1,
    "answers nothing": 2,
    "answers a megabyte": 3,
    "reverts with a megabyte": 4,
    "answers two": 5,
    "answers ones": 6,
    "invalid": 7,
}
OWNERLESS = {"reverts": 0, "burns all gas": 1, "answers nothing": 2, "answers a megabyte": 3, "answers ones": 4}


def answers(world: GovernedWorld, app: Contract) -> list[str]:
    """KmsAuth's and the operator's answers: yes, no with a reason, or a revert, which is none."""
    world.send(world.stranger, world.kms, "registerApp", app.address)
    questions: list[Any] = [
        world.kms.functions.isAppAllowed(world.boot(app_id=app.address)),
        world.operator.functions.isAllowed(world.workload(app=app.address)),
    ]
    return [_answer(question) for question in questions]


def _answer(question: Any) -> str:
    try:
        allowed, reason = question.call({"gas": 30_000_000})
    except (ContractLogicError, Web3RPCError):
        return "reverted"
    return "yes" if allowed else "no with a reason" if reason else "no"


@pytest.fixture
def image_allowed(governed: GovernedWorld) -> GovernedWorld:
    """The gates before the app's own contract are open."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose())
    assert (governed.asked(), governed.allowed_at(governed.now)) == (GRANTED, GRANTED)
    return governed


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_p28_an_app_in_the_operators_name_that_misbehaves(image_allowed: GovernedWorld, way: int) -> None:
    """It says the operator owns it, and fails at everything else: a no with a reason from both."""
    app = hostile("Misbehaving").deploy(image_allowed, image_allowed.operator.address, way)

    assert answers(image_allowed, app) == ["no with a reason"] * 2


@pytest.mark.parametrize("way", OWNERLESS.values(), ids=OWNERLESS)
def test_p28_an_app_that_misbehaves_when_asked_for_its_owner(image_allowed: GovernedWorld, way: int) -> None:
    """The first question of all is already answered with garbage: still a no with a reason from both."""
    app = hostile("Ownerless").deploy(image_allowed, way)

    assert answers(image_allowed, app) == ["no with a reason"] * 2


def test_p28_one_bad_app_leaves_the_others_alone(image_allowed: GovernedWorld) -> None:
    """The app beside it is answered as before."""
    app = hostile("Misbehaving").deploy(image_allowed, image_allowed.operator.address, WAYS["burns all gas"])
    image_allowed.send(image_allowed.stranger, image_allowed.kms, "registerApp", app.address)

    assert (image_allowed.asked(), image_allowed.allowed_at(image_allowed.now)) == (GRANTED, GRANTED)
