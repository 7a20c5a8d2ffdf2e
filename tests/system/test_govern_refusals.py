"""Bad input of `dstack govern`: each is refused with its own sentence, and nothing is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from dstack.chain.operator import Content, proposal_id
from dstack.chain.safe import sign_safe_transaction
from dstack.chain.signing_file import SigningFile, parse_signing_file, serialise_signing_file
from dstack.devnet.anvil import Anvil
from tests.govern_world import IMAGE, GovernWorld, Run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[GovernWorld]:
    """A 2-of-3 Safe that owns everything, an app, and a file for its owners to sign."""
    with Anvil.start() as chain:
        made = GovernWorld(chain, tmp_path_factory.mktemp("govern"), project_root)
        made.deploy(made.safe("alice", "bob", "carol"))
        made.app()
        assert made.govern("propose", f"OsImage={IMAGE}", "--out", made.path("proposal.json")).code == 0
        made.account("stranger")
        yield made


@pytest.fixture
def world(shared: GovernWorld) -> Iterator[GovernWorld]:
    """The same; whatever a test does, no transaction comes of it."""
    before = shared.w3.eth.block_number
    yield shared
    assert shared.w3.eth.block_number == before


def file_of(world: GovernWorld) -> SigningFile:
    """The proposal's signing file."""
    return parse_signing_file(Path(world.path("proposal.json")).read_bytes())


def refused(run: Run, code: int, sentence: str) -> None:
    """One sentence and its exit code."""
    assert (run.code, sentence in run.refusal) == (code, True), run


@pytest.mark.parametrize("size", [0, 31, 33, 64])
@pytest.mark.parametrize("kind", ["OsImage", "KmsDevice", "KmsAggregatedMr"])
def test_a_hash_of_another_length_is_refused(world: GovernWorld, kind: str, size: int) -> None:
    """Nothing is padded or cut."""
    run = world.govern("propose", f"{kind}={'ab' * size}", "--out", world.path("never.json"))

    refused(run, 2, f"want 32 bytes, got {size}" if size else "want a value")


@pytest.mark.parametrize("size", [31, 33])
def test_an_image_digest_of_another_length_is_refused(world: GovernWorld, size: int) -> None:
    """The option's name stands in the sentence."""
    app = world.govern("status").facts["apps"].popitem()[0]
    compose = world.compose("some.json")

    run = world.govern(
        *("propose", "--app", app, "--compose", compose, "--image-digest", "ab" * size),
        *("--out", world.path("never.json")),
    )

    refused(run, 2, f"--image-digest: Digest32: want 32 bytes, got {size}")


@pytest.mark.parametrize("size", [31, 33])
def test_an_id_of_another_length_is_refused(world: GovernWorld, size: int) -> None:
    """An id is a hash too."""
    refused(world.govern("execute", "ab" * size, *world.key("payer")), 2, f"want 32 bytes, got {size}")


def test_a_zero_hash_is_refused(world: GovernWorld) -> None:
    """Zero is a wildcard in too many places."""
    refused(world.govern("propose", f"OsImage={'00' * 32}", "--out", world.path("never.json")), 2, "got zero")


def test_an_address_with_a_wrong_checksum_is_refused(world: GovernWorld) -> None:
    """One letter in the wrong case means that some digit may be wrong too."""
    address = world.account("bob")
    at = next(index for index, char in enumerate(address) if index > 1 and char.isalpha())
    wrong = address[:at] + address[at].swapcase() + address[at + 1 :]

    refused(world.govern("propose", f"Guardian={wrong}", "--out", world.path("never.json")), 2, "wrong checksum")


@pytest.mark.parametrize("cut", [slice(0, 41), slice(2, 42)], ids=["one digit short", "without 0x"])
def test_a_truncated_address_is_refused(world: GovernWorld, cut: slice) -> None:
    """An address is 0x and 40 digits."""
    typed = world.account("bob")[cut]

    run = world.govern("propose", f"Guardian={typed}", "--out", world.path("never.json"))

    refused(run, 2, "want 0x and 40 hexadecimal digits")


def test_deploying_on_another_chain_is_refused(world: GovernWorld) -> None:
    """The chain that was meant is named, and the one that answers."""
    accounts = ("--owner", world.account("alice"), "--guardian", world.account("bob"))

    run = world.govern("deploy", "--chain-id", "1", *accounts, "--out", world.path("d.json"), *world.key("payer"))

    refused(run, 2, "chain id: want 1, the endpoint is on 31337")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"chain_id": 1}, "chain id: the deployment file says 1, the endpoint 31337"),
        (
            {"operator": "0x" + "42" * 20},
            "operator: there is no contract at 0x4242424242424242424242424242424242424242",
        ),
        (
            {"kms_auth": "0x" + "42" * 20},
            "kms_auth: there is no contract at 0x4242424242424242424242424242424242424242",
        ),
        ({"version": 2}, "want format 'dstack-deployment', version 1"),
        ({"extra": 1}, "unknown member 'extra'"),
    ],
    ids=["chain", "operator", "kms_auth", "version", "member"],
)
def test_a_deployment_file_that_leads_elsewhere_is_refused(
    world: GovernWorld, change: dict[str, Any], sentence: str
) -> None:
    """Another chain, or an address without a contract."""
    content = json.loads(Path(world.path("deployment.json")).read_text()) | change
    other = world.write("elsewhere.json", json.dumps(content))

    refused(world.govern("status", "--deployment", other), 2, sentence)


def test_another_contract_in_the_operators_place_is_refused(world: GovernWorld) -> None:
    """Code at the address is not enough: it must be UpgradeOperator's."""
    content = json.loads(Path(world.path("deployment.json")).read_text())
    other = world.write("swapped.json", json.dumps(content | {"operator": content["app_implementation"]}))

    refused(world.govern("status", "--deployment", other), 2, "is not the UpgradeOperator of this release")


def test_an_id_of_another_chain_is_refused(world: GovernWorld) -> None:
    """The same content has another id on another chain, and the sentence says that ids belong to one."""
    operator = world.govern("status").facts["operator"]
    foreign = proposal_id(1, operator, 0, Content((), (), (), ""))

    for command in ("review", "execute", "cancel"):
        run = world.govern(command, foreign.hex())
        refused(run, 1, "on chain 31337 has no such proposal; an id belongs to one chain and one contract")


@pytest.mark.parametrize(
    "member", ["chain_id", "safe", "owners", "threshold", "to", "data", "nonce", "digest", "checksum"]
)
def test_a_tampered_signing_file_is_refused(world: GovernWorld, member: str) -> None:
    """Whatever is changed in the file, neither signing nor submitting goes on."""
    content = json.loads(Path(world.path("proposal.json")).read_text())
    changed = {
        "chain_id": 1,
        "safe": "0x" + "42" * 20,
        "to": "0x" + "42" * 20,
        "owners": [world.account("stranger")],
        "threshold": 1,
        "data": content["data"][:-2] + "01",
        "nonce": 7,
        "digest": "0x" + "42" * 32,
        "checksum": "0x" + "42" * 32,
    }
    path = world.write("tampered.json", json.dumps(content | {member: changed[member]}))

    for run in (
        world.govern("sign", path, "--yes", *world.key("alice")),
        world.govern("submit", path, *world.key("payer")),
        world.govern("review", "--file", path),
    ):
        refused(run, 1, "signing file: changed on its way")


def test_a_digest_that_was_said_otherwise_is_refused(world: GovernWorld) -> None:
    """What a signer heard from the others must be what the file holds."""
    run = world.govern("sign", world.path("proposal.json"), "--digest", "42" * 32, *world.key("alice"))

    refused(run, 1, "digest: want 4242")


def test_a_stranger_cannot_sign(world: GovernWorld) -> None:
    """A key outside the Safe is named before it signs."""
    run = world.govern("sign", world.path("proposal.json"), "--yes", *world.key("stranger"))

    refused(run, 1, f"{world.account('stranger')} is not an owner of the Safe")


def test_a_strangers_signature_is_refused_even_if_the_file_lists_it(world: GovernWorld) -> None:
    """The chain says who owns the Safe, whatever a well-made file says."""
    file = file_of(world)
    stranger = world.keys["stranger"]
    signatures = tuple(sign_safe_transaction(key, file.transaction) for key in (world.keys["alice"], stranger))
    forged = replace(file, owners=(*file.owners, stranger.address), signatures=signatures)
    path = world.write("forged.json", serialise_signing_file(forged))

    refused(world.govern("submit", path, *world.key("payer")), 1, f"{stranger.address} signed, and is not an owner")


def test_two_signatures_by_one_owner_are_refused(world: GovernWorld) -> None:
    """In one file, in two copies, and when one signs again."""
    file = file_of(world)
    once = replace(file, signatures=(sign_safe_transaction(world.keys["alice"], file.transaction),))
    twice = replace(once, signatures=once.signatures * 2)
    single, double = (world.write(name, serialise_signing_file(one)) for name, one in (("1", once), ("2", twice)))

    sentence = f"two signatures by {world.account('alice')}; each owner counts once"
    refused(world.govern("submit", double, *world.key("payer")), 1, sentence)
    refused(world.govern("submit", single, single, *world.key("payer")), 1, sentence)
    refused(world.govern("sign", single, "--yes", *world.key("alice")), 1, sentence)


def test_a_signature_over_something_else_is_refused(world: GovernWorld) -> None:
    """A signature made for another transaction does not carry over, nor under another owner's name."""
    file = file_of(world)
    other = sign_safe_transaction(world.keys["alice"], replace(file.transaction, nonce=9))
    path = world.write("other.json", serialise_signing_file(replace(file, signatures=(other,))))

    refused(world.govern("submit", path, *world.key("payer")), 1, "is not by")


def test_too_few_signatures_are_refused(world: GovernWorld) -> None:
    """The sentence counts them."""
    run = world.govern("submit", world.path("proposal.json"), *world.key("payer"))

    refused(run, 1, "want 2 signatures of its 3 owners, got 0")


@pytest.mark.parametrize(("nonce", "sentence"), [(5, "transaction 5 must wait; its next is 0")])
def test_a_transaction_out_of_turn_is_refused(world: GovernWorld, nonce: int, sentence: str) -> None:
    """A Safe makes its transactions in order."""
    file = file_of(world)
    later = replace(file, transaction=replace(file.transaction, nonce=nonce))
    path = world.write("later.json", serialise_signing_file(later))

    refused(world.govern("submit", path, *world.key("payer")), 1, sentence)


def test_a_file_for_another_chain_is_refused_by_submit(world: GovernWorld) -> None:
    """A well-made file for another chain stays there."""
    file = file_of(world)
    foreign = replace(file, transaction=replace(file.transaction, chain_id=1))
    path = world.write("foreign.json", serialise_signing_file(foreign))

    refused(world.govern("submit", path, *world.key("payer")), 1, "is for chain 1, the endpoint is 31337")
    refused(world.govern("review", "--file", path), 1, "is for chain 1, want 31337")


def test_a_compose_file_that_was_not_proposed_is_not_reproduced(world: GovernWorld) -> None:
    """Review says NOT REPRODUCED, which value differs, and exits with 1."""
    compose = world.compose("never-proposed.json")

    run = world.run("govern", "review", "--file", world.path("proposal.json"), "--compose", compose)

    assert run.code == 1
    assert run.out.splitlines()[-1] == "NOT REPRODUCED"
    assert "DIFFERS" in run.out


def test_a_key_that_others_can_read_is_refused(world: GovernWorld) -> None:
    """A key file is its owner's alone."""
    path = Path(world.write("open.key", "11" * 32))
    path.chmod(0o644)

    run = world.govern("execute", "ab" * 32, "--key-file", str(path))
    signed = world.govern("sign", world.path("proposal.json"), "--yes", "--key-file", str(path))

    assert run.code == 1
    refused(signed, 2, "only its owner may read")


def test_a_broken_key_is_not_repeated(world: GovernWorld) -> None:
    """The sentence names the file and shows nothing of what is in it."""
    secret = "11" * 31
    path = world.write("short.key", secret)

    run = world.govern("sign", world.path("proposal.json"), "--yes", "--key-file", path)

    refused(run, 2, "want a private key of 64 hexadecimal digits")
    assert secret[:8] not in run.out + run.err


def test_a_keystore_opens_with_its_passphrase_only(world: GovernWorld) -> None:
    """An encrypted keystore is a key; another passphrase is refused."""
    keystore = Account.encrypt(world.keys["alice"].key, "right", kdf="pbkdf2", iterations=10)
    path = world.write("alice.json", json.dumps(keystore))
    copy = world.write("copy.json", Path(world.path("proposal.json")).read_bytes())

    options = ("--key-file", path, "--passphrase-env", "PHRASE")
    wrong = world.govern("sign", copy, "--yes", *options, environment={"PHRASE": "wrong"})
    right = world.govern("sign", copy, "--yes", *options, environment={"PHRASE": "right"})

    refused(wrong, 2, "keystore: wrong passphrase")
    assert right.facts["signed_by"] == [world.account("alice")]


def test_nothing_is_signed_without_a_word(world: GovernWorld) -> None:
    """Without a terminal to ask at, signing needs the digest or an explicit yes."""
    refused(world.govern("sign", world.path("proposal.json"), *world.key("alice")), 2, "want --digest or --yes")


def test_a_signature_of_a_hardware_wallet_is_taken(world: GovernWorld) -> None:
    """What another device signed over the two hashes goes into the file like any other."""
    file = file_of(world)
    made = sign_safe_transaction(world.keys["bob"], file.transaction)
    copy = world.write("wallet.json", serialise_signing_file(file))
    named = ("--owner", made.owner, "--signature", made.signature.hex())

    run = world.govern("sign", copy, "--digest", file.transaction.digest().hex(), *named)

    assert run.facts["signed_by"] == [made.owner]
    assert run.facts["domain_hash"] != run.facts["message_hash"]


def test_an_endpoint_that_does_not_answer_is_neither_yes_nor_no(world: GovernWorld) -> None:
    """Exit code 3, as everywhere."""
    run = world.govern("status", "--rpc-url", "http://127.0.0.1:1")

    assert run.code == 3


def test_a_simulated_refusal_is_a_sentence(world: GovernWorld) -> None:
    """The contract's own reason comes before anybody signs."""
    app = "0x" + "42" * 20

    run = world.govern("propose", f"Device:{app}={'ab' * 32}", "--out", world.path("never.json"))

    refused(run, 1, f"Device: want a contract that this operator owns, got {app}")


def test_what_cannot_be_put_into_words_is_not_signed(world: GovernWorld) -> None:
    """A well-made file whose call nobody can read is refused unless the signer insists."""
    file = file_of(world)
    opaque = replace(file, transaction=replace(file.transaction, data=b"\xde\xad\xbe\xef"))
    path = world.write("opaque.json", serialise_signing_file(opaque))

    refused(world.govern("sign", path, "--yes", *world.key("alice")), 1, "cannot be put into words")
    assert world.govern("sign", path, "--yes", "--blind", *world.key("alice")).code == 0


def test_a_call_of_another_contract_is_not_signed(world: GovernWorld) -> None:
    """The same words said to another contract than the known UpgradeOperator mean something else."""
    file = file_of(world)
    elsewhere = replace(file, transaction=replace(file.transaction, to=file.transaction.safe))
    path = world.write("other-contract.json", serialise_signing_file(elsewhere))

    refused(world.govern("sign", path, "--yes", *world.key("alice")), 1, "not UpgradeOperator")
    refused(world.govern("review", "--file", path), 1, "not UpgradeOperator")
