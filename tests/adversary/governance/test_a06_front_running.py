"""A6: front-running of execution."""

from __future__ import annotations

from tests.governed_world import COMPOSE, GovernedWorld, Sent, State


def test_a06_whoever_is_first_changes_nothing(governed: GovernedWorld) -> None:
    """A front-runner executes exactly what was announced, pays for it, and the other one fails without effect."""
    proposal = governed.propose(governed.compose())
    call = (proposal.id, proposal.content)

    statuses = governed.in_one_block(
        Sent(governed.stranger, governed.operator, "execute", call),
        Sent(governed.owner, governed.operator, "execute", call),
        at=proposal.ready_at,
    )

    assert statuses == [1, 0]
    assert governed.state(proposal) is State.EXECUTED
    assert governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_a06_too_little_gas_does_nothing_in_part(governed: GovernedWorld) -> None:
    """Whatever gas the front-runner gives, all actions happen or none, and a failure leaves the proposal Ready."""
    proposal = governed.propose(governed.compose(), governed.image(), governed.version(1))
    data = bytes.fromhex(governed.operator.encode_abi("execute", args=[proposal.id, proposal.content])[2:])
    governed.warp_to(proposal.ready_at)
    enough = governed.w3.eth.estimate_gas({"to": governed.operator.address, "data": "0x" + data.hex()})  # type: ignore[typeddict-item]

    for share in range(50, 100, 5):
        gas = enough * share // 100
        receipt = governed.transact(governed.stranger, governed.operator.address, data, gas=gas)
        allowed = governed.app.functions.allowedComposeHashes(COMPOSE).call()
        if receipt["status"] == 0:
            assert (governed.state(proposal), allowed) == (State.READY, False)
        else:
            assert (governed.state(proposal), allowed) == (State.EXECUTED, True)
            assert governed.app.functions.newestVersion().call() == 1
            break


def test_a06_acceptance_of_a_role_cannot_be_taken(governed: GovernedWorld) -> None:
    """Adoption is the owner's and acceptance the nominee's: a front-runner gets neither."""
    app = governed.own_app(governed.owner)
    governed.send(governed.owner, app, "transferOwnership", governed.operator.address)

    refusals = [
        governed.refused(governed.stranger, governed.operator, "adopt", app.address),
        governed.refused(governed.stranger, app, "acceptOwnership"),
        governed.refused(governed.stranger, governed.operator, "acceptOwnership"),
    ]

    assert refusals == [
        ("OwnableUnauthorizedAccount", governed.stranger),
        ("OwnableUnauthorizedAccount", governed.stranger),
        ("NotNominated", governed.stranger),
    ]
