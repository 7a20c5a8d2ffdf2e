"""A11: code swapped at a known address (CREATE2, self-destruct).

Every place of the content: test_p12_code_hashes_are_checked_again.py.
"""

from __future__ import annotations

from web3 import Web3

from tests.chain_world import events_of
from tests.governed_world import GovernedWorld, Kind, word
from tests.hostile_contracts import hostile

# PUSH0 PUSH0 RETURN, put in place by seven instructions.
CREATION = bytes.fromhex("625f5ff35f526003601df3")
RUNTIME = bytes.fromhex("5f5ff3")


def test_a11_code_that_appears_at_an_address_named_before(governed: GovernedWorld) -> None:
    """A gateway, guardian or owner proposed as an empty address, and filled by CREATE2 later, is refused."""
    factory = hostile("Factory").deploy(governed)
    digest = Web3.keccak(b"\xff" + bytes.fromhex(factory.address[2:]) + bytes(32) + Web3.keccak(CREATION))
    account = Web3.to_checksum_address(digest[12:])
    proposals = [
        governed.propose(governed.on_kms(Kind.GATEWAY_APP_ID, word(account))),
        governed.propose(governed.on_self(Kind.GUARDIAN, word(account))),
        governed.propose(governed.on_self(Kind.OWNER, word(account))),
    ]
    receipt = governed.send(governed.stranger, factory, "make", CREATION)

    refusals = [governed.execution_refused(each, at=proposals[-1].ready_at + i) for i, each in enumerate(proposals)]

    ((_, made),) = events_of(factory, receipt)
    assert (made["account"], bytes(governed.w3.eth.get_code(account))) == (account, RUNTIME)
    assert refusals == [("CodeChanged", account, Web3.keccak(RUNTIME), bytes(32))] * 3


def test_a11_an_implementation_cannot_be_named_before_it_is_there(governed: GovernedWorld) -> None:
    """Code for apps that does not exist yet could become anything; it cannot be proposed."""
    content = governed.content([governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(governed.stranger))])

    refusal = governed.refused(governed.owner, governed.operator, "propose", content)

    assert refusal == ("DataMalformed", Kind.IMPLEMENTATION_UPGRADE, word(governed.stranger))


def test_a11_code_that_vanished_and_came_back_different(governed: GovernedWorld) -> None:
    """Destroyed, it is refused for having none; made again as something else, for being that."""
    code = governed.deploy_ours("AppAuth").address
    want = Web3.keccak(governed.w3.eth.get_code(code))
    proposal = governed.propose(governed.on_app(Kind.IMPLEMENTATION_UPGRADE, word(code)))

    governed.rpc("anvil_setCode", code, "0x")
    gone = governed.execution_refused(proposal, at=proposal.ready_at)
    governed.rpc("anvil_setCode", code, "0x" + RUNTIME.hex())
    other = governed.execution_refused(proposal)

    assert gone == ("CodeChanged", code, bytes(32), want)
    assert other == ("CodeChanged", code, Web3.keccak(RUNTIME), want)


def test_a11_a_key_that_delegated_its_account_is_no_longer_the_one_named(governed: GovernedWorld) -> None:
    """An account that took code by EIP-7702 between announcement and execution is refused, too."""
    heir = governed.chain.funded_account().address
    proposal = governed.propose(governed.on_self(Kind.OWNER, word(heir)))
    delegation = bytes.fromhex("ef0100") + bytes.fromhex(governed.app_implementation[2:])
    governed.rpc("anvil_setCode", heir, "0x" + delegation.hex())

    refusal = governed.execution_refused(proposal, at=proposal.ready_at)

    assert (refusal[0], refusal[1], refusal[3]) == ("CodeChanged", heir, bytes(32))
