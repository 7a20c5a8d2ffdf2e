"""A20: a registered app contract that returns true for everything."""

from __future__ import annotations

import pytest
from web3.contract import Contract

from tests.governed_world import DEVICE, GRANTED, Action, GovernedWorld, Kind
from tests.hostile_contracts import hostile

EVIL = b"\xee" * 32


@pytest.fixture
def yes_man(governed: GovernedWorld) -> Contract:
    """Registered, with every gate of KmsAuth open; it says that the operator owns it."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE), governed.compose())
    contract = hostile("YesMan").deploy(governed, governed.operator.address)
    governed.send(governed.stranger, governed.kms, "registerApp", contract.address)
    return contract


def test_a20_it_decides_for_itself_only(governed: GovernedWorld, yes_man: Contract) -> None:
    """Its yes gives keys of its own app id, which nobody else has; the app beside it is asked itself."""
    assert governed.asked(app_id=yes_man.address, compose_hash=EVIL) == GRANTED
    assert governed.asked(compose_hash=EVIL) == (False, "Compose hash not allowed")


def test_a20_it_opens_no_gate_of_kms_auth(governed: GovernedWorld, yes_man: Contract) -> None:
    """OS image and freeze are not its to say, nor whether a KMS gets the root keys."""
    image = governed.asked(app_id=yes_man.address, os_image_hash=EVIL)
    as_kms = tuple(governed.kms.functions.isKmsAllowed(governed.boot(app_id=yes_man.address)).call())
    governed.deny(governed.freeze(app=yes_man.address))

    assert image == (False, "OS image is not allowed")
    assert as_kms == (False, "Aggregated MR not allowed")
    assert governed.asked(app_id=yes_man.address) == (False, "App is frozen")


def test_a20_the_operator_does_not_vouch_for_it(governed: GovernedWorld, yes_man: Contract) -> None:
    """That it claims this operator as its owner is not enough for the operator's yes."""
    allowed, reason = governed.allowed_at(governed.now, EVIL, app=yes_man.address)

    assert (allowed, bool(reason)) == (False, True)


def test_a20_the_factory_tells_its_own_apps_apart(governed: GovernedWorld, yes_man: Contract) -> None:
    """Whether an app was made from code that KmsAuth's owner had set can be asked."""
    is_made = governed.kms.functions.isFactoryMade

    assert (is_made(governed.app.address).call(), is_made(yes_man.address).call()) == (True, False)


def test_a20_a_proposal_about_it_touches_nothing_else(governed: GovernedWorld, yes_man: Contract) -> None:
    """It takes any action without complaint; the app beside it is as it was."""
    before = governed.asked(), governed.asked(compose_hash=EVIL)

    governed.grant(Action(Kind.COMPOSE_HASH, yes_man.address, EVIL))

    assert (governed.asked(), governed.asked(compose_hash=EVIL)) == before
