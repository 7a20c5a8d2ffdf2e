"""A2: re-entrancy from an owner contract or an ERC-165 probe.

The operator asks no contract which interfaces it has; what it calls of a stranger's contract is `owner`, as a static
call, and on adoption `acceptOwnership`.
"""

from __future__ import annotations

from tests.governed_world import COMPOSE, Action, GovernedWorld, Kind, State, decoded_refusal, word
from tests.hostile_contracts import hostile


def test_a02_from_the_contract_being_adopted(governed: GovernedWorld) -> None:
    """A contract that is also the owner cannot adopt, deny or execute again while it is being adopted."""
    target = hostile("CallingBack").deploy(governed, governed.stranger, True)
    operator = governed.operator
    governed.grant(governed.on_self(Kind.OWNER, word(target.address)))
    governed.send(governed.stranger, target, "forward", operator.address, operator.encode_abi("acceptOwnership"))
    for call in (
        operator.encode_abi("adopt", args=[target.address]),
        operator.encode_abi("deny", args=[[governed.compose()]]),
    ):
        governed.send(governed.stranger, target, "prepare", operator.address, call)

    adopt = operator.encode_abi("adopt", args=[target.address])
    governed.send(governed.stranger, target, "forward", operator.address, adopt)

    outcomes = [target.functions.outcome(i).call() for i in range(2)]
    assert [(done, decoded_refusal(said)) for done, said in outcomes] == [(False, ("Reentered",))] * 2
    assert target.functions.owner().call() == operator.address


def test_a02_from_a_denied_target(governed: GovernedWorld) -> None:
    """A denial cannot be used to execute what it is about to deny, not even by its own target."""
    target = hostile("CallingBack").deploy(governed, governed.operator.address, False)
    proposal = governed.propose(governed.compose())
    call = governed.operator.encode_abi("execute", args=[proposal.id, proposal.content])
    governed.send(governed.stranger, target, "prepare", governed.operator.address, call)

    batch = [Action(Kind.COMPOSE_HASH, target.address, COMPOSE), governed.compose()]
    governed.deny(*batch, at=proposal.ready_at)

    done, said = target.functions.outcome(0).call()
    assert (done, decoded_refusal(said)) == (False, ("Reentered",))
    assert governed.state(proposal) is State.READY
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_a02_from_the_owner_during_an_execution(governed: GovernedWorld) -> None:
    """Cancelling from inside finds the proposal executed: the state was final before the call."""
    target = hostile("CallingBack").deploy(governed, governed.operator.address, False)
    operator = governed.operator
    governed.grant(governed.on_self(Kind.GUARDIAN, word(target.address)))
    governed.send(governed.stranger, target, "forward", operator.address, operator.encode_abi("acceptGuardian"))
    proposal = governed.propose(Action(Kind.COMPOSE_HASH, target.address, COMPOSE))
    call = operator.encode_abi("cancel", args=[proposal.id])
    governed.send(governed.stranger, target, "prepare", operator.address, call)

    governed.execute(proposal, at=proposal.ready_at)

    done, said = target.functions.outcome(0).call()
    assert (done, decoded_refusal(said)) == (False, ("NotPending", proposal.id, State.EXECUTED))
    assert governed.state(proposal) is State.EXECUTED


def test_a02_a_contract_that_keeps_its_owner_is_not_adopted(governed: GovernedWorld) -> None:
    """One that accepts and hands nothing over must not be announced as owned."""
    liar = hostile("CallingBack").deploy(governed, governed.stranger, False)
    call = bytes.fromhex(governed.operator.encode_abi("adopt", args=[liar.address])[2:])

    receipt = governed.transact(governed.owner, governed.operator.address, call)

    assert liar.functions.owner().call() == governed.stranger
    assert (receipt["status"], receipt["logs"]) == (0, [])
