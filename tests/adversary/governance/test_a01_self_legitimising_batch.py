"""A1: a batch that legitimises itself while running."""

from __future__ import annotations

from tests.governed_world import COMPOSE, Action, GovernedWorld, Kind, State, decoded_refusal, word
from tests.hostile_contracts import hostile


def test_a01_unannounced_content_cannot_announce_itself(governed: GovernedWorld) -> None:
    """Execution looks for the proposal before it calls anything: a target that would propose it is never reached."""
    owner = hostile("CallingBack").deploy(governed, governed.operator.address, False)
    governed.grant(governed.on_self(Kind.OWNER, word(owner.address)))
    governed.send(
        governed.stranger, owner, "forward", governed.operator.address, governed.operator.encode_abi("acceptOwnership")
    )
    content = governed.content([Action(Kind.COMPOSE_HASH, owner.address, COMPOSE), governed.compose()])
    would_be = bytes(governed.operator.functions.proposalId(1, content).call())
    propose = governed.operator.encode_abi("propose", args=[content])
    governed.send(governed.stranger, owner, "prepare", governed.operator.address, propose)

    refusal = governed.refused(governed.stranger, governed.operator, "execute", would_be, content)

    assert refusal == ("UnexpectedState", would_be, State.UNSET, State.READY)
    assert owner.functions.visits().call() == 0
    assert governed.operator.functions.proposalCount().call() == 1


def test_a01_what_a_batch_proposes_waits_like_everything(governed: GovernedWorld) -> None:
    """A target that is the owner, too, may propose from inside; it cannot execute that, nor adopt or deny."""
    owner = hostile("CallingBack").deploy(governed, governed.operator.address, False)
    governed.grant(governed.on_self(Kind.OWNER, word(owner.address)))
    operator = governed.operator
    governed.send(governed.stranger, owner, "forward", operator.address, operator.encode_abi("acceptOwnership"))
    inside = governed.content([governed.compose()])
    inside_id = bytes(operator.functions.proposalId(2, inside).call())
    for function, arguments in (
        ("propose", [inside]),
        ("execute", [inside_id, inside]),
        ("adopt", [governed.app.address]),
        ("deny", [[governed.compose()]]),
    ):
        call = operator.encode_abi(function, args=arguments)
        governed.send(governed.stranger, owner, "prepare", operator.address, call)
    batch = governed.content([Action(Kind.COMPOSE_HASH, owner.address, COMPOSE)])
    outer = operator.encode_abi("propose", args=[batch])
    governed.send(governed.stranger, owner, "forward", operator.address, outer)
    ready_at = governed.now + 172_800
    batch_id = operator.functions.proposalIds(1, 1).call()[0]

    governed.send(governed.stranger, operator, "execute", batch_id, batch, at=ready_at)

    outcomes = [owner.functions.outcome(i).call() for i in range(4)]
    assert [done for done, _ in outcomes] == [True, False, False, False]
    assert [decoded_refusal(said) for _, said in outcomes[1:]] == [("Reentered",)] * 3
    assert operator.functions.proposal(inside_id).call()[2] == ready_at + 172_800
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_a01_a_batch_cannot_bring_its_own_target_under_government(governed: GovernedWorld) -> None:
    """All targets are looked at before the first action: one that would only be governed after it stops the batch."""
    target = hostile("CallingBack").deploy(governed, governed.operator.address, False)
    proposal = governed.propose(governed.compose(), Action(Kind.COMPOSE_HASH, target.address, COMPOSE))
    governed.send(governed.stranger, target, "setOwner", governed.stranger)

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("TargetNotGoverned", Kind.COMPOSE_HASH, target.address)
