"""P23: owner may be a Safe, a Governor or another timelock.

The Safe: tests/contracts/test_safe.py. A real Governor is not deployed here; any contract that calls will do.
"""

from __future__ import annotations

import pytest

from dstack.chain.bindings import contract_at
from tests.governed_world import (
    COMPOSE,
    DAY,
    MIN_DELAY,
    ZERO_ADDRESS,
    GovernedWorld,
    Kind,
    Proposal,
    proposal_id,
    word,
)
from tests.hostile_contracts import built, hostile


def test_p23_an_openzeppelin_timelock_as_owner(governed: GovernedWorld) -> None:
    """It accepts the role, proposes and cancels by its own schedule; our delay comes on top of its own."""
    timelock = built("TimelockController").deploy(governed, DAY, [governed.owner], [governed.stranger], ZERO_ADDRESS)
    operator = governed.operator
    governed.grant(governed.on_self(Kind.OWNER, word(timelock.address)))

    def by_timelock(function: str, *arguments: object) -> None:
        data = bytes.fromhex(operator.encode_abi(function, args=list(arguments))[2:])
        call = (operator.address, 0, data, bytes(32), bytes(32))
        governed.send(governed.owner, timelock, "schedule", *call, DAY)
        governed.send(governed.stranger, timelock, "execute", *call, at=governed.now + DAY)

    by_timelock("acceptOwnership")
    content = governed.content([governed.compose()])
    by_timelock("propose", content)

    at = governed.now
    proposal = Proposal(proposal_id(31337, operator.address, 1, content), content, at, at + MIN_DELAY)
    governed.execute(proposal, at=at + MIN_DELAY)
    assert operator.functions.owner().call() == timelock.address
    assert governed.app.functions.allowedComposeHashes(COMPOSE).call()


@pytest.mark.parametrize("role", ["owner", "guardian"])
def test_p23_any_contract_holds_a_role(governed: GovernedWorld, role: str) -> None:
    """Without an interface, receive function or signature check of any kind: what counts is who calls."""
    account = hostile("CallingBack").deploy(governed, governed.stranger, False)
    kind, accept = {"owner": (Kind.OWNER, "acceptOwnership"), "guardian": (Kind.GUARDIAN, "acceptGuardian")}[role]
    governed.grant(governed.on_self(kind, word(account.address)), governed.compose())
    operator = governed.operator

    for call in (operator.encode_abi(accept), operator.encode_abi("deny", args=[[governed.compose()]])):
        governed.send(governed.stranger, account, "forward", operator.address, call)

    assert operator.functions[role]().call() == account.address
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_p23_an_operator_under_an_operator_is_no_shortcut(governed: GovernedWorld) -> None:
    """An operator cannot call another: there is no kind of action for it, so such an owner could only wait for ever."""
    inner = governed.deploy_ours("UpgradeOperator", governed.operator.address, governed.guardian, (MIN_DELAY,) * 3)

    assert contract_at(governed.w3, "UpgradeOperator", inner.address).functions.owner().call() == (
        governed.operator.address
    )
    content = governed.content([governed.compose()])
    assert governed.refused(governed.owner, inner, "propose", content) == (
        "OwnableUnauthorizedAccount",
        governed.owner,
    )
