"""A7: the edge of time.

Every edge at minus one, exact, plus one second: test_p25_edges_of_time.py.
"""

from __future__ import annotations

from tests.governed_world import DAY, GovernedWorld, Sent, State


def test_a07_the_block_that_is_early_by_a_second_executes_nothing(governed: GovernedWorld) -> None:
    """A block producer that sets its own time cannot do both in one second: early fails, in time works."""
    proposal = governed.propose(governed.compose())
    call = Sent(governed.stranger, governed.operator, "execute", (proposal.id, proposal.content))

    early = governed.in_one_block(call, at=proposal.ready_at - 1)
    in_time = governed.in_one_block(call, call, at=proposal.ready_at)

    assert (early, in_time) == ([0], [1, 0])


def test_a07_the_window_and_the_wait_do_not_overlap(governed: GovernedWorld) -> None:
    """At no second is a proposal in two states, and each second has one."""
    proposal = governed.propose(governed.compose())
    edges = [proposal.ready_at, proposal.expires_at]

    seen = []
    for edge in edges:
        for at in (edge - 1, edge, edge + 1):
            governed.warp_to(at)
            seen.append(governed.state(proposal))

    assert seen == [State.WAITING, State.READY, State.READY, State.READY, State.EXPIRED, State.EXPIRED]


def test_a07_times_near_the_end_of_their_type(governed: GovernedWorld) -> None:
    """An end in the last second that 64 bits can hold is an end like any other; one more is refused."""
    last = 2**64 - 1
    governed.grant(governed.version(1))
    governed.deny(governed.sunset(1, governed.now + 10 * DAY))
    governed.grant(governed.sunset(1, last))
    content = governed.content([governed.sunset(1, 2**64)])

    refusal = governed.refused(governed.owner, governed.operator, "propose", content)

    assert governed.app.functions.versionRecord(1).call()[1] == last
    assert refusal[0] == "DataMalformed"
    ask = governed.app.functions.isConfigurationAllowed
    answers = [ask(b"\xc0" * 32, b"\x05" * 32, at).call() for at in (last - 1, last, 2**256 - 1)]
    assert answers == [True, False, False]
