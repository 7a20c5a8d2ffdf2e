"""P20: history can be enumerated on chain in pages; no loop without a bound on any hot path."""

from __future__ import annotations

from web3 import Web3

from tests.governed_world import GovernedWorld, proposal_id


def test_p20_every_proposal_is_found_in_pages(governed: GovernedWorld) -> None:
    """Pages in order of proposal, cut at the end, empty behind it, never more than 100."""
    content = governed.content([governed.compose()])
    propose = governed.operator.encode_abi("propose", args=[content])
    for _ in range(103):
        governed.rpc(
            "eth_sendTransaction",
            {"from": governed.owner, "to": governed.operator.address, "data": propose, "gas": hex(10**6)},
        )
    governed.rpc("evm_mine")

    page = governed.operator.functions.proposalIds
    want = [proposal_id(31337, governed.operator.address, nonce, content) for nonce in range(103)]
    assert governed.operator.functions.proposalCount().call() == 103
    assert page(0, 2**256 - 1).call() == want[:100]
    assert page(100, 100).call() == want[100:]
    assert [page(1, 2).call(), page(103, 5).call(), page(2**256 - 1, 5).call(), page(0, 0).call()] == [
        want[1:3],
        [],
        [],
        [],
    ]


def test_p20_every_version_is_found_in_pages(governed: GovernedWorld) -> None:
    """Newest first, by the numbers they have; from a number that is none, nothing."""
    numbers = [3, 7, 8, 100, 2**40]
    governed.grant(*(governed.version(number, compose_hash=bytes([i + 1]) * 32) for i, number in enumerate(numbers)))

    page = governed.app.functions.versionNumbers

    assert page(0, 100).call() == numbers[::-1]
    assert page(0, 2).call() == [2**40, 100]
    assert page(8, 2).call() == [8, 7]
    assert [page(9, 2).call(), page(0, 0).call()] == [[], []]


def test_p20_the_hot_path_does_not_grow_with_history(governed: GovernedWorld) -> None:
    """Asking costs the same after 1 version as after 33."""
    governed.grant(governed.image(), governed.version(1))
    question = {"to": governed.kms.address, "data": governed.kms.encode_abi("isAppAllowed", args=[governed.boot()])}
    before = governed.w3.eth.estimate_gas(question)  # type: ignore[arg-type]
    first = 2
    for _ in range(2):
        hashes = [Web3.keccak(first + i) for i in range(16)]
        governed.grant(*(governed.version(first + i, compose_hash=each) for i, each in enumerate(hashes)))
        first += 16

    after = governed.w3.eth.estimate_gas(question)  # type: ignore[arg-type]

    assert governed.app.functions.newestVersion().call() == 33
    assert after - before < 5_000


def test_p20_lists_that_are_given_are_bounded(governed: GovernedWorld) -> None:
    """At most 16 actions on either path and in a rollback, at most 512 bytes of address."""
    many = [governed.compose(bytes([n]) * 32) for n in range(1, 18)]
    good = governed.content(many[:16], many[:16], "u" * 512)

    refusals = [
        governed.refused(governed.owner, governed.operator, "propose", governed.content(many)),
        governed.refused(governed.owner, governed.operator, "propose", governed.content(many[:1], many)),
        governed.refused(governed.owner, governed.operator, "propose", governed.content([])),
        governed.refused(governed.guardian, governed.operator, "deny", many),
        governed.refused(governed.guardian, governed.operator, "deny", []),
        governed.refused(governed.owner, governed.operator, "propose", good._replace(uri="u" * 513)),
    ]
    governed.send(governed.owner, governed.operator, "propose", good)

    assert refusals == [
        ("ActionCountOutOfRange", 17, 16),
        ("ActionCountOutOfRange", 17, 16),
        ("ActionCountOutOfRange", 0, 16),
        ("ActionCountOutOfRange", 17, 16),
        ("ActionCountOutOfRange", 0, 16),
        ("UriTooLong", 513, 512),
    ]
