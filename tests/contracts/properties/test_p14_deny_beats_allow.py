"""P14: deny beats allow inside one block and one proposal."""

from __future__ import annotations

import pytest

from tests.governed_world import (
    COMPOSE,
    DAY,
    DEVICE,
    ON,
    Action,
    GovernedWorld,
    Kind,
    Sent,
    word,
)


def pairs(world: GovernedWorld) -> dict[str, tuple[Action, Action]]:
    """A grant, and the denial of the same."""
    return {
        "compose hash": (world.compose(), world.compose()),
        "version": (world.version(1), world.compose()),
        "device": (world.on_app(Kind.DEVICE, DEVICE),) * 2,
        "any device": (world.on_app(Kind.ANY_DEVICE, ON),) * 2,
        "outdated TCB": (
            world.on_app(Kind.OUTDATED_TCB, word(world.now + 30 * DAY)),
            world.on_app(Kind.OUTDATED_TCB, ON),
        ),
        "OS image": (world.image(),) * 2,
        "KMS measurement": (world.on_kms(Kind.KMS_AGGREGATED_MR, COMPOSE),) * 2,
        "KMS device": (world.on_kms(Kind.KMS_DEVICE, DEVICE),) * 2,
        "end of a freeze": (world.freeze(), world.freeze()),
    }


PAIRS = [
    "compose hash",
    "version",
    "device",
    "any device",
    "outdated TCB",
    "OS image",
    "KMS measurement",
    "KMS device",
    "end of a freeze",
]


@pytest.mark.parametrize("name", PAIRS)
def test_p14_a_denial_stops_what_was_proposed_of_it(governed: GovernedWorld, name: str) -> None:
    """Up to and including the second of the denial; what is proposed a second later is not stopped."""
    grant, denial = pairs(governed)[name]
    same = governed.propose(grant)
    denied = governed.deny(denial, at=same.proposed_at)
    later = governed.propose(grant, at=same.proposed_at + 1)

    refusal = governed.execution_refused(same, at=same.ready_at)

    assert denied["blockNumber"] < governed.w3.eth.block_number
    assert governed.operator.functions.deniedAt(grant).call() == same.proposed_at
    kind = Kind.COMPOSE_HASH if name == "version" else grant.kind
    subject = {"version": COMPOSE, "outdated TCB": bytes(32)}.get(name, grant.data)
    assert refusal == ("DeniedSince", kind, grant.target, subject, same.proposed_at)
    governed.execute(later, at=later.ready_at)


@pytest.mark.parametrize("denial_first", [True, False])
def test_p14_in_one_block_the_denial_wins(governed: GovernedWorld, denial_first: bool) -> None:
    """Whichever of execution and denial comes first in the block, afterwards it is denied."""
    proposal = governed.propose(governed.compose())
    calls = [
        Sent(governed.guardian, governed.operator, "deny", ([governed.compose()],)),
        Sent(governed.stranger, governed.operator, "execute", (proposal.id, proposal.content)),
    ]

    statuses = governed.in_one_block(*(calls if denial_first else calls[::-1]), at=proposal.ready_at)

    assert statuses == ([1, 0] if denial_first else [1, 1])
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()


@pytest.mark.parametrize("denial_first", [True, False])
def test_p14_proposed_and_denied_in_one_block_is_denied(governed: GovernedWorld, denial_first: bool) -> None:
    """The order inside the block does not matter."""
    content = governed.content([governed.compose()])
    calls = [
        Sent(governed.guardian, governed.operator, "deny", ([governed.compose()],)),
        Sent(governed.owner, governed.operator, "propose", (content,)),
    ]

    statuses = governed.in_one_block(*(calls if denial_first else calls[::-1]))

    at = governed.now
    proposed = governed.operator.functions.proposalIds(0, 1).call()[0]
    governed.warp_to(at + 2 * DAY)
    refusal = governed.refused(governed.stranger, governed.operator, "execute", proposed, content)
    assert statuses == [1, 1]
    assert refusal == ("DeniedSince", Kind.COMPOSE_HASH, governed.app.address, COMPOSE, at)


def test_p14_freezing_and_unfreezing_in_one_proposal_freezes(governed: GovernedWorld) -> None:
    """In either order the app is not free afterwards: one order is refused, in the other it ends frozen."""
    renew, free = governed.freeze(Kind.FREEZE_RENEWAL), governed.freeze(Kind.APP)
    frees_last, freezes_last = governed.propose(renew, free), governed.propose(free, renew)

    refusal = governed.execution_refused(frees_last, at=freezes_last.ready_at)
    governed.execute(freezes_last, at=freezes_last.ready_at + 1)

    kind, app = Kind.APP, word(governed.app.address)
    assert refusal == ("DeniedSince", kind, governed.kms.address, app, freezes_last.ready_at)
    assert governed.asked() == (False, "App is frozen")


def test_p14_a_batch_with_one_denied_action_does_nothing(governed: GovernedWorld) -> None:
    """Not in part either."""
    proposal = governed.propose(governed.image(), governed.on_app(Kind.ANY_DEVICE, ON), governed.compose())
    governed.deny(governed.compose())
    denied_at = governed.now

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert refusal == ("DeniedSince", Kind.COMPOSE_HASH, governed.app.address, COMPOSE, denied_at)
    assert not governed.kms.functions.allowedOsImages(b"\x05" * 32).call()


def test_p14_an_end_that_a_proposal_sets_is_not_lifted_by_the_same_proposal(governed: GovernedWorld) -> None:
    """Superseding version 1 denies it from its sunset on; a later end in the same proposal does not take that back."""
    governed.grant(governed.version(1))
    sunset = governed.now + 10 * DAY
    newer = governed.version(2, compose_hash=b"\x02" * 32, supersedes=1, sunset=sunset)
    proposal = governed.propose(newer, governed.sunset(1, 0))

    governed.warp_to(proposal.ready_at)
    data = governed.operator.encode_abi("execute", args=[proposal.id, proposal.content])
    governed.transact(governed.stranger, governed.operator.address, bytes.fromhex(data[2:]))

    executed = governed.operator.functions.proposal(proposal.id).call()[3] != 0
    assert not executed or governed.app.functions.versionRecord(1).call()[1] == sunset
