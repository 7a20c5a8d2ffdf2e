"""P7: a proposal cannot be edited; cancel and propose again."""

from __future__ import annotations

import pytest

from tests.contracts.properties.test_p06_ids_are_digests_never_reused import CHANGES
from tests.governed_world import GovernedWorld, State, proposal_id


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_p07_other_content_is_not_executed(governed: GovernedWorld, name: str) -> None:
    """Whatever is changed, the refusal names the id that the changed content would have."""
    proposal = governed.propose(governed.compose(), governed.image(), rollback=[governed.compose(b"\x01" * 32)])
    other = CHANGES[name](proposal.content)
    governed.warp_to(proposal.ready_at)

    refusal = governed.refused(governed.owner, governed.operator, "execute", proposal.id, other)

    got = proposal_id(31337, governed.operator.address, 0, other)
    assert refusal == ("ContentMismatch", proposal.id, got)


def test_p07_nothing_but_its_end_ever_changes(governed: GovernedWorld) -> None:
    """A cancelled proposal keeps nonce and times; its successor has a nonce and a wait of its own."""
    first = governed.propose(governed.compose())
    governed.send(governed.owner, governed.operator, "cancel", first.id, at=first.ready_at - 1)
    second = governed.propose(governed.compose())

    records = [tuple(governed.operator.functions.proposal(each.id).call()) for each in (first, second)]

    assert records == [
        (0, first.proposed_at, first.ready_at, 0, True, False, False),
        (1, second.proposed_at, second.proposed_at + 172_800, 0, False, False, False),
    ]
    assert governed.execution_refused(first, at=second.ready_at) == (
        "UnexpectedState",
        first.id,
        State.CANCELLED,
        State.READY,
    )
