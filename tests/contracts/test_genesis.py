"""Genesis of a secure file, and anchors of handovers, in UpgradeOperator."""

from __future__ import annotations

from eth_utils.crypto import keccak

from tests.chain_world import events_of
from tests.governed_world import MIN_DELAY, GovernedWorld, Kind, State, word

FINGERPRINT, EVIDENCE = b"\xf1" * 32, b"\xe1" * 32
NOTHING = [bytes(32), bytes(32), 0, 0]


def recorded(world: GovernedWorld) -> list[object]:
    """What the chain has about an app's beginning."""
    return list(world.operator.functions.genesisOf(world.app.address).call())


def test_a_genesis_is_recorded_by_a_proposal(governed: GovernedWorld) -> None:
    """Fingerprint, evidence, block and time stand in the view; the first two in the event."""
    proposal = governed.propose(governed.genesis())
    before = recorded(governed)

    receipt = governed.execute(proposal, at=proposal.proposed_at + MIN_DELAY)

    assert before == NOTHING
    assert recorded(governed) == [FINGERPRINT, EVIDENCE, receipt["blockNumber"], proposal.ready_at]
    assert events_of(governed.operator, receipt)[1:] == [
        ("GenesisRecorded", {"app": governed.app.address, "fingerprint": FINGERPRINT, "evidence": EVIDENCE})
    ]


def test_a_genesis_is_recorded_once(governed: GovernedWorld) -> None:
    """A second one, even an equal one, is refused, and the first stays."""
    twin, other = (governed.propose(each) for each in (governed.genesis(), governed.genesis(b"\x01" * 32)))
    governed.grant(governed.genesis())
    before = recorded(governed)

    for proposal in (twin, other):
        refusal = governed.execution_refused(proposal)
        assert refusal == ("GenesisRecordedAlready", governed.app.address, FINGERPRINT)
        assert governed.state(proposal) is State.READY
    assert recorded(governed) == before


def test_two_in_one_proposal_record_none(governed: GovernedWorld) -> None:
    """A batch cannot have it both ways."""
    both = governed.propose(governed.genesis(), governed.genesis(b"\x01" * 32))

    refusal = governed.execution_refused(both, at=both.ready_at)

    assert refusal == ("GenesisRecordedAlready", governed.app.address, FINGERPRINT)
    assert recorded(governed) == NOTHING


def test_a_stranger_occupies_no_app(governed: GovernedWorld) -> None:
    """Nobody but the owner proposes one, also not for an app that the stranger made in the operator's name."""
    function = "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"
    arguments = (governed.operator.address, False, False, True, bytes(32), bytes(32))
    receipt = governed.send(governed.stranger, governed.kms, function, *arguments)
    (made,) = (event for name, event in events_of(governed.kms, receipt) if name == "AppDeployedViaFactory")
    content = governed.content([governed.genesis()._replace(target=made["appId"])])

    for account in (governed.stranger, governed.guardian):
        refusal = governed.refused(account, governed.operator, "propose", content)
        assert refusal == ("OwnableUnauthorizedAccount", account)


def test_an_app_of_somebody_else_gets_no_genesis_here(governed: GovernedWorld) -> None:
    """Only apps that this operator owns have their beginning in it."""
    foreign = governed.own_app(governed.stranger).address
    action = governed.genesis()._replace(target=foreign)
    content = ([action], [], [bytes(32)] * 2, "")

    refusal = governed.refused(governed.owner, governed.operator, "propose", content)

    assert refusal == ("TargetNotGoverned", Kind.GENESIS, foreign)


def test_owner_and_guardian_can_stop_a_false_genesis(governed: GovernedWorld) -> None:
    """A thief of the owner's key is seen for 48 hours, because what is recorded is never replaced."""
    for account in (governed.owner, governed.guardian):
        false = governed.propose(governed.genesis())
        governed.send(account, governed.operator, "cancel", false.id, at=false.ready_at)

    assert recorded(governed) == NOTHING


def test_anybody_anchors_a_receipt(governed: GovernedWorld) -> None:
    """The event names the sender, the app and the digest; all three can be searched for; nothing is stored."""
    digest = keccak(b"a receipt")

    receipt = governed.send(governed.stranger, governed.operator, "anchorReceipt", governed.app.address, digest)

    (log,) = receipt["logs"]
    assert [bytes(topic) for topic in log["topics"]] == [
        keccak(text="ReceiptAnchored(address,address,bytes32)"),
        word(governed.stranger),
        word(governed.app.address),
        digest,
    ]
    assert bytes(log["data"]) == b""


def test_spam_hides_no_anchor(governed: GovernedWorld) -> None:
    """Who looks for one sender's anchors finds these alone, whatever others anchored about the same app."""
    node, digest = governed.chain.funded_account().address, keccak(b"a receipt")
    for number in range(20):
        governed.send(governed.stranger, governed.operator, "anchorReceipt", governed.app.address, word(number))
    governed.send(node, governed.operator, "anchorReceipt", governed.app.address, digest)
    for number in range(20):
        governed.send(governed.stranger, governed.operator, "anchorReceipt", governed.app.address, word(number))

    found = governed.operator.events.ReceiptAnchored.get_logs(from_block=0, argument_filters={"by": node})

    assert [(each["args"]["by"], each["args"]["digest"]) for each in found] == [(node, digest)]


def test_an_anchor_is_cheap_and_changes_nothing(governed: GovernedWorld) -> None:
    """It writes no slot: the same call costs the same again, and the state root of the operator is what it was."""
    address = governed.operator.address
    first, second = (
        governed.send(governed.stranger, governed.operator, "anchorReceipt", governed.app.address, b"\x01" * 32)
        for _ in range(2)
    )
    roots = [
        governed.w3.eth.get_proof(address, [], receipt["blockNumber"])["storageHash"] for receipt in (first, second)
    ]

    assert first["gasUsed"] == second["gasUsed"]
    assert roots[0] == roots[1]
