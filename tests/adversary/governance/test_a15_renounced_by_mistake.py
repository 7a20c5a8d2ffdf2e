"""A15: ownership renounced by mistake."""

from __future__ import annotations

import pytest

from tests.governed_world import ZERO_ADDRESS, GovernedWorld, Kind


@pytest.mark.parametrize("who", ["owner", "guardian", "stranger"])
def test_a15_nothing_can_be_renounced(governed: GovernedWorld, who: str) -> None:
    """The operator, KmsAuth and the app refuse it to everybody."""
    contracts = (governed.operator, governed.kms, governed.app)

    refusals = [governed.refused(getattr(governed, who), each, "renounceOwnership") for each in contracts]

    assert refusals == [("RenounceRefused",)] * 3


def test_a15_nor_by_their_direct_owner(governed: GovernedWorld) -> None:
    """Outside an operator the rule is the same, and an heir who never accepts changes nothing."""
    app = governed.own_app(governed.owner)
    kms = governed.proxy("KmsAuth", "initialize", governed.owner, governed.app_implementation)

    for contract in (app, kms):
        assert governed.refused(governed.owner, contract, "renounceOwnership") == ("RenounceRefused",)
        governed.send(governed.owner, contract, "transferOwnership", ZERO_ADDRESS)
        assert contract.functions.owner().call() == governed.owner


def test_a15_nor_to_the_zero_address_by_a_proposal(governed: GovernedWorld) -> None:
    """Neither role can be proposed for nobody."""
    for kind in (Kind.OWNER, Kind.GUARDIAN):
        content = governed.content([governed.on_self(kind, bytes(32))])
        refusal = governed.refused(governed.owner, governed.operator, "propose", content)
        assert refusal == ("DataMalformed", kind, bytes(32))


def test_a15_nor_by_naming_an_account_that_does_not_exist(governed: GovernedWorld) -> None:
    """A mistyped heir cannot accept, the nomination ends, and the owner is who it was."""
    governed.grant(governed.on_self(Kind.OWNER, b"\0" * 12 + b"\x99" * 20))

    assert governed.operator.functions.owner().call() == governed.owner
    governed.propose(governed.compose())
