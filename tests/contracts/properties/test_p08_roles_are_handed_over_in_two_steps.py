"""P8: owner or guardian change by the grant path, in two steps, accepted by the new one; renouncing is impossible."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import WINDOW, ZERO_ADDRESS, GovernedWorld, Kind, word

ROLES = [(Kind.OWNER, "acceptOwnership", "owner"), (Kind.GUARDIAN, "acceptGuardian", "guardian")]


@pytest.mark.parametrize(("kind", "accept", "role"), ROLES, ids=["owner", "guardian"])
def test_p08_a_role_changes_hands_when_the_new_one_accepts(
    governed: GovernedWorld, kind: Kind, accept: str, role: str
) -> None:
    """Execution only nominates; the nominated account accepts, once, before 14 days have passed."""
    holder = governed.operator.functions[role]
    old = holder().call()
    proposal = governed.propose(governed.on_self(kind, word(governed.stranger)))
    receipt = governed.execute(proposal, at=proposal.ready_at)
    expires_at = proposal.ready_at + WINDOW
    nominated = events_of(governed.operator, receipt)[1:]
    before = holder().call()

    governed.send(governed.stranger, governed.operator, accept, at=expires_at - 1)

    assert nominated == [("Nominated", {"kind": kind, "account": governed.stranger, "expiresAt": expires_at})]
    assert (before, holder().call()) == (old, governed.stranger)
    assert governed.refused(governed.stranger, governed.operator, accept) == ("NotNominated", governed.stranger)
    nominee = governed.operator.functions["nominated" + role.capitalize()]
    assert tuple(nominee().call()) == (ZERO_ADDRESS, 0)


@pytest.mark.parametrize(("kind", "accept", "role"), ROLES, ids=["owner", "guardian"])
def test_p08_a_nomination_expires(governed: GovernedWorld, kind: Kind, accept: str, role: str) -> None:
    """In the second in which the 14 days end it is too late, and the role stays where it was."""
    proposal = governed.grant(governed.on_self(kind, word(governed.stranger)))

    refusal = governed.refused(governed.stranger, governed.operator, accept, at=proposal.ready_at + WINDOW)

    assert refusal == ("NotNominated", governed.stranger)
    assert governed.operator.functions[role]().call() == getattr(governed, role)


@pytest.mark.parametrize(("kind", "accept", "role"), ROLES, ids=["owner", "guardian"])
def test_p08_only_the_newest_nominee_accepts(governed: GovernedWorld, kind: Kind, accept: str, role: str) -> None:
    """A second nomination replaces the first; nobody else, not even the holder, can accept."""
    first, second = governed.stranger, governed.chain.funded_account().address
    governed.grant(governed.on_self(kind, word(first)), governed.on_self(kind, word(second)))

    for account in (first, governed.owner, governed.guardian):
        assert governed.refused(account, governed.operator, accept) == ("NotNominated", account)
    governed.send(second, governed.operator, accept)

    assert governed.operator.functions[role]().call() == second


def test_p08_no_role_changes_outside_the_grant_path(governed: GovernedWorld) -> None:
    """The owner can neither transfer nor renounce; neither function does anything for anybody."""
    for account in (governed.owner, governed.guardian, governed.stranger):
        renounced = governed.refused(account, governed.operator, "renounceOwnership")
        transferred = governed.refused(account, governed.operator, "transferOwnership", governed.stranger)
        assert (renounced, transferred) == (("RenounceRefused",), ("OnlyByProposal",))


@pytest.mark.parametrize("kind", [Kind.OWNER, Kind.GUARDIAN])
def test_p08_nobody_is_no_successor(governed: GovernedWorld, kind: Kind) -> None:
    """The zero address, and more than an address, cannot be proposed for a role."""
    for data in (bytes(32), b"\x01" + bytes(31)):
        content = governed.content([governed.on_self(kind, data)])
        refusal = governed.refused(governed.owner, governed.operator, "propose", content)
        assert refusal == ("DataMalformed", kind, data)


def test_p08_the_old_holder_has_no_power_left(governed: GovernedWorld) -> None:
    """After both handovers the old accounts are strangers."""
    heirs = [governed.chain.funded_account().address for _ in range(2)]
    governed.grant(governed.on_self(Kind.OWNER, word(heirs[0])), governed.on_self(Kind.GUARDIAN, word(heirs[1])))
    governed.send(heirs[0], governed.operator, "acceptOwnership")
    governed.send(heirs[1], governed.operator, "acceptGuardian")

    content = governed.content([governed.compose()])
    refusals = [
        governed.refused(governed.owner, governed.operator, "propose", content),
        governed.refused(governed.owner, governed.operator, "deny", [governed.compose()]),
        governed.refused(governed.guardian, governed.operator, "deny", [governed.compose()]),
    ]

    assert refusals == [
        ("OwnableUnauthorizedAccount", governed.owner),
        ("NeitherOwnerNorGuardian", governed.owner),
        ("NeitherOwnerNorGuardian", governed.guardian),
    ]
