"""A10: re-initialising a proxy, storage collision on upgrade.

The layout itself: scripts/storage_layout.py.
"""

from __future__ import annotations

import pytest

from tests.governed_world import COMPOSE, DEVICE, GRANTED, GovernedWorld, Kind, registers, word

APP_FORMS = {
    "initialize(address,bool,bool,bytes32,bytes32)": 2,
    "initialize(address,bool,bool,bool,bytes32,bytes32)": 3,
}


def initialise_refused(world: GovernedWorld) -> list[tuple[object, ...]]:
    """Every initialiser of every proxy and of the code behind it, by a stranger."""
    refusals = []
    for address in (world.app.address, world.app_implementation):
        app = world.w3.eth.contract(address=address, abi=world.app.abi)
        for form, switches in APP_FORMS.items():
            arguments = (world.stranger, *[True] * switches, COMPOSE, COMPOSE)
            refusals.append(world.refused(world.stranger, app, form, *arguments))
    for address in (world.kms.address, world.kms_implementation):
        kms = world.w3.eth.contract(address=address, abi=world.kms.abi)
        refusals.append(world.refused(world.stranger, kms, "initialize", world.stranger, world.stranger))
    return refusals


def test_a10_nothing_is_initialised_twice(governed: GovernedWorld) -> None:
    """Neither a proxy nor the code behind it, in either form, before or after an upgrade."""
    before = initialise_refused(governed)
    app, kms = governed.deploy_ours("AppAuth").address, governed.deploy_ours("KmsAuth").address
    governed.grant(
        governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(app)),
        governed.on_kms(Kind.IMPLEMENTATION_UPGRADE, word(kms)),
    )

    assert before + initialise_refused(governed) == [("InvalidInitialization",)] * 12


def test_a10_an_upgrade_keeps_every_policy(governed: GovernedWorld) -> None:
    """After new code of the same layout each value is what it was, and the answers are the same."""
    governed.grant(
        governed.image(),
        governed.on_app(Kind.DEVICE, DEVICE),
        governed.compose(b"\x01" * 32),
        governed.version(1, register_sets=[registers(1)]),
        governed.on_kms(Kind.GATEWAY_APP_ID, word(governed.stranger)),
    )
    slots = range(80)

    def state() -> list[object]:
        stored = [
            bytes(governed.w3.eth.get_storage_at(contract.address, slot))
            for contract in (governed.app, governed.kms)
            for slot in slots
        ]
        return [
            stored,
            governed.asked(),
            governed.asked(compose_hash=b"\x01" * 32),
            governed.kms.functions.owner().call(),
        ]

    before = state()
    app, kms = governed.deploy_ours("AppAuth").address, governed.deploy_ours("KmsAuth").address
    governed.grant(
        governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(app)),
        governed.on_kms(Kind.IMPLEMENTATION_UPGRADE, word(kms)),
    )

    assert state() == before
    assert governed.asked() == GRANTED


@pytest.mark.parametrize("name", ["no code for proxies", "a proxy as code"])
def test_a10_code_that_could_never_be_upgraded_again_is_refused(governed: GovernedWorld, name: str) -> None:
    """What does not say that it is code for such a proxy does not become it."""
    code = governed.operator.address if name == "no code for proxies" else governed.kms.address
    proposal = governed.propose(governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(code)))

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal in (("ERC1967InvalidImplementation", code), ("UUPSUnauthorizedCallContext",))
