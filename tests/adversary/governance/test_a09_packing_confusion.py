"""A9: length and packing confusion.

Every wrong length: test_p15_nothing_is_padded.py.
"""

from __future__ import annotations

from eth_abi.abi import encode

from tests.governed_world import (
    COMPOSE,
    CONTENT_TYPE,
    MIN_DELAY,
    OWN,
    Action,
    Content,
    GovernedWorld,
    Kind,
    proposal_id,
    version_data,
    words,
)

EVIL = b"\xee" * 32


def test_a09_bytes_cannot_be_moved_between_fields(governed: GovernedWorld) -> None:
    """Contents that a packed encoding could not tell apart have different ids."""
    app = governed.app.address
    hashes = [bytes(32)] * 4
    contents = [
        Content([Action(Kind.SUNSET, app, words(1, 2))], [], hashes, "ab"),
        Content([Action(Kind.SUNSET, app, words(1))], [], hashes, words(2).decode() + "ab"),
        Content([Action(Kind.SUNSET, app, words(1) + words(2)[:-1])], [], hashes, "\x02ab"),
        Content([], [Action(Kind.SUNSET, app, words(1, 2))], hashes, "ab"),
        Content([Action(Kind.SUNSET, app, words(1, 2))], [], hashes[:3], "\0" * 32 + "ab"),
        Content([Action(Kind.SUNSET, app, words(1)), Action(Kind.SUNSET, app, words(2))], [], hashes, "ab"),
    ]

    ids = {bytes(governed.operator.functions.proposalId(0, each).call()) for each in contents}

    assert len(ids) == len(contents)


def test_a09_calldata_with_dirt_is_refused(governed: GovernedWorld) -> None:
    """A kind and a target with bits above their width, and calldata cut short, do nothing."""
    call = bytearray.fromhex(governed.operator.encode_abi("deny", args=[[governed.compose()]])[2:])
    place = call.index(bytes.fromhex(governed.app.address[2:])) - 12
    dirty_target, dirty_kind = bytearray(call), bytearray(call)
    dirty_target[place] = 1
    dirty_kind[place - 32] = 1
    short = call[:-1] if call[-1] else call[:-33]

    for data in (dirty_target, dirty_kind, short):
        receipt = governed.transact(governed.guardian, governed.operator.address, bytes(data))
        assert (receipt["status"], receipt["logs"]) == (0, [])
    assert governed.transact(governed.guardian, governed.operator.address, bytes(call))["status"] == 1


def test_a09_a_version_is_not_a_hash_nor_a_hash_a_version(governed: GovernedWorld) -> None:
    """The data of one kind is refused under every other."""
    version = version_data(1)
    for kind in Kind:
        if kind in (Kind.VERSION, Kind.CONTRACT_UPGRADES):
            continue
        action = (governed.on_self if kind in OWN else governed.on_app)(kind, version)
        content = ([action], [], [bytes(32)] * 2, "")
        refusal = governed.refused(governed.owner, governed.operator, "propose", content)
        assert refusal == ("DataMalformed", kind, version)
    content = ([governed.on_app(Kind.VERSION, COMPOSE)], [], [bytes(32)] * 2, "")
    refusal = governed.refused(governed.owner, governed.operator, "propose", content)
    assert refusal[0] in ("DataMalformed", "nothing", "Panic")


def test_a09_the_same_bytes_mean_different_things_to_different_subjects(governed: GovernedWorld) -> None:
    """Denying a hash as device, OS image or of another app does not stop it as compose hash of this one."""
    other = governed.own_app(governed.operator.address)
    proposal = governed.propose(governed.compose())
    governed.deny(
        governed.on_app(Kind.DEVICE, COMPOSE),
        governed.image(COMPOSE),
        governed.on_kms(Kind.KMS_DEVICE, COMPOSE),
        Action(Kind.COMPOSE_HASH, other.address, COMPOSE),
    )

    governed.execute(proposal, at=proposal.ready_at)

    assert governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_a09_content_behind_the_announced_one_is_not_executed(governed: GovernedWorld) -> None:
    """A call that holds the announced bytes, and points at other content behind or inside them, runs neither."""
    proposal = governed.propose(governed.compose())
    announced = encode([CONTENT_TYPE], [tuple(proposal.content)])[32:]
    other = encode([CONTENT_TYPE], [tuple(governed.content([governed.compose(EVIL)]))])[32:]
    function = bytes.fromhex(governed.operator.encode_abi("execute", args=[proposal.id, proposal.content])[2:10])
    calls = {
        "behind": words(64 + len(announced)) + announced + other,
        "before": words(64 + len(other)) + other + announced,
        "beside": words(64) + other + announced,
        "longer": words(64) + announced + bytes(32),
        "shifted": words(96) + bytes(32) + announced,
        "inside": words(96) + announced,
    }

    outcomes = {
        name: governed.transact(
            governed.stranger,
            governed.operator.address,
            function + proposal.id + call,
            at=proposal.ready_at + number,
        )["status"]
        for number, (name, call) in enumerate(calls.items())
    }

    assert outcomes == dict.fromkeys(calls, 0)
    assert not governed.app.functions.allowedComposeHashes(EVIL).call()
    assert not governed.app.functions.allowedComposeHashes(COMPOSE).call()
    governed.execute(proposal)
    assert governed.app.functions.allowedComposeHashes(COMPOSE).call()


def test_a09_content_that_was_proposed_in_another_encoding_is_the_same(governed: GovernedWorld) -> None:
    """Its id is that of the one encoding, which the event shows; so everybody can execute what they read."""
    content = governed.content([governed.compose()])
    usual = encode([CONTENT_TYPE], [tuple(content)])[32:]
    function = bytes.fromhex(governed.operator.encode_abi("propose", args=[content])[2:10])

    receipt = governed.transact(
        governed.owner, governed.operator.address, function + words(64) + bytes(32) + usual + bytes(64)
    )

    identity = proposal_id(31337, governed.operator.address, 0, content)
    assert receipt["status"] == 1
    assert governed.operator.functions.proposalIds(0, 1).call() == [identity]
    governed.send(governed.stranger, governed.operator, "execute", identity, content, at=governed.now + MIN_DELAY)
    assert governed.app.functions.allowedComposeHashes(COMPOSE).call()
