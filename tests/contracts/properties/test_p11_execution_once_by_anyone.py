"""P11: execution is open to anyone, exactly once, and re-entrancy-safe."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import COMPOSE, Action, GovernedWorld, Kind, State, decoded_refusal
from tests.hostile_contracts import hostile


@pytest.mark.parametrize("who", ["owner", "guardian", "stranger"])
def test_p11_anybody_executes(governed: GovernedWorld, who: str) -> None:
    """The event names the sender, who gains nothing by it."""
    proposal = governed.propose(governed.compose())

    receipt = governed.execute(proposal, by=getattr(governed, who), at=proposal.ready_at)

    assert events_of(governed.operator, receipt) == [
        ("ProposalExecuted", {"id": proposal.id, "by": getattr(governed, who)})
    ]
    record = governed.operator.functions.proposal(proposal.id).call()
    assert record == (0, proposal.proposed_at, proposal.ready_at, proposal.ready_at, False, False, False)


def test_p11_exactly_once(governed: GovernedWorld) -> None:
    """Also after the grant was denied, executing again does not bring it back."""
    proposal = governed.grant(governed.compose())
    governed.deny(governed.compose())

    assert governed.execution_refused(proposal) == ("UnexpectedState", proposal.id, State.EXECUTED, State.READY)
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_p11_a_failing_action_leaves_everything_as_it_was(governed: GovernedWorld) -> None:
    """The last of three fails: none happened, and the proposal is still Ready."""
    fails = Action(Kind.DEVICE, governed.kms.address, COMPOSE)
    proposal = governed.propose(governed.compose(), governed.image(), fails)

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("nothing",)
    assert governed.state(proposal) is State.READY
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_p11_a_target_that_calls_back_finds_it_executed(governed: GovernedWorld) -> None:
    """From inside its own execution a proposal cannot be executed, cancelled or rolled back."""
    target = hostile("CallingBack").deploy(governed, governed.operator.address, False)
    action = Action(Kind.COMPOSE_HASH, target.address, COMPOSE)
    proposal = governed.propose(action, action)
    for function in ("execute", "rollBack"):
        call = governed.operator.encode_abi(function, args=[proposal.id, proposal.content])
        governed.send(governed.stranger, target, "prepare", governed.operator.address, call)

    governed.execute(proposal, at=proposal.ready_at)

    outcomes = [target.functions.outcome(i).call() for i in range(4)]
    said = [(done, decoded_refusal(said)) for done, said in outcomes]
    assert target.functions.visits().call() == 2
    assert (
        said
        == [
            (False, ("Reentered",)),
            (False, ("NeitherOwnerNorGuardian", target.address)),
        ]
        * 2
    )
    assert governed.state(proposal) is State.EXECUTED


def test_p11_targets_are_looked_at_again_afterwards(governed: GovernedWorld) -> None:
    """A target that leaves the operator's hands while it is called undoes the whole execution."""
    deserter = hostile("Deserter").deploy(governed, governed.operator.address)
    proposal = governed.propose(governed.compose(), Action(Kind.COMPOSE_HASH, deserter.address, COMPOSE))

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("TargetNotGoverned", Kind.COMPOSE_HASH, deserter.address)
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()
