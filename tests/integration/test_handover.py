"""A handover between two replicators in one process: verified quotes, an in-memory chain, real files."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.errors import ChainUnavailableError, HandoverRefusedError, KeyReleaseDeniedError, KeystoreError
from replicator.documents import parse_answer, parse_request
from tests.worlds import BLOCK, SECRET, Site, make_handover


def test_secure_file_arrives_with_a_receipt_on_both_sides(tmp_path: Path, site: Site) -> None:
    """An allowed new node of the same app gets the secure file, mode 0600, and both nodes keep the same receipt."""
    world = make_handover(tmp_path, site)

    answer = world.old.onboard(world.new.request_key().encode())
    receipt = world.new.receive_key(answer.encode())

    assert world.new_secure_file.read_bytes() == SECRET
    assert stat.S_IMODE(world.new_secure_file.stat().st_mode) == 0o600
    sent, received = world.receipts("old"), world.receipts("new")
    assert [kept["role"] for kept in (*sent, *received)] == ["sent", "received"]
    assert sent[0]["receipt"] == received[0]["receipt"] == receipt.members()
    assert sent[0]["sender_evidence"] == received[0]["sender_evidence"] == json.loads(answer)["evidence"]
    assert [kept["sender_simulated_root"] for kept in (*sent, *received)] == [True, True]


def test_receipt_names_block_law_and_parties(tmp_path: Path, site: Site) -> None:
    """The receipt says at which block the new node was allowed, by which contract, and who the two sides are."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()

    terms = parse_answer(world.old.onboard(request).encode()).receipt.terms

    assert terms.request_hash == parse_request(request).request.hash()
    assert (terms.block_number, terms.block_hash) == (BLOCK.number, BLOCK.hash)
    assert terms.law == parse_request(request).request.law
    assert terms.sender.compose_hash == world.old_machine.booted.app_compose.compose_hash
    assert terms.receiver.compose_hash == world.new_machine.booted.app_compose.compose_hash
    assert terms.receiver.instance_id == world.new_machine.booted.instance_id
    assert terms.receiver.os_image_hash == site.image.os_image_hash
    assert terms.simulated_root is True


def test_the_secret_is_nowhere_in_what_travels_or_is_logged(
    tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither documents nor logs nor receipts contain the secure file."""
    world = make_handover(tmp_path, site)

    with caplog.at_level("DEBUG"):
        request = world.new.request_key()
        answer = world.old.onboard(request.encode())
        world.new.receive_key(answer.encode())

    kept = json.dumps([*world.receipts("old"), *world.receipts("new")])
    for text in (request, answer, kept, caplog.text):
        assert SECRET.hex() not in text
        assert SECRET.decode() not in text


def test_a_waiting_configuration_is_denied_by_its_rule(tmp_path: Path, site: Site) -> None:
    """A new node whose compose hash is not executed yet is denied by COMPOSE_HASH, and may ask again afterwards."""
    world = make_handover(tmp_path, site)
    waiting = world.new_machine.booted.app_compose.compose_hash
    world.chain.allowed.remove(waiting)
    request = world.new.request_key().encode()

    with pytest.raises(KeyReleaseDeniedError, match=f"{waiting.hex()}.*not executed yet") as denied:
        world.old.onboard(request)
    world.chain.allowed.add(waiting)
    world.new.receive_key(world.old.onboard(request).encode())

    assert (denied.value.rule, denied.value.block) == ("COMPOSE_HASH", BLOCK.number)
    assert world.new_secure_file.read_bytes() == SECRET


def test_an_old_node_that_was_removed_is_not_believed(tmp_path: Path, site: Site) -> None:
    """An answer of a node that the chain no longer allows is refused, and the request stays open."""
    world = make_handover(tmp_path, site)
    answer = world.old.onboard(world.new.request_key().encode())
    world.chain.allowed.remove(world.old_machine.booted.app_compose.compose_hash)

    with pytest.raises(KeyReleaseDeniedError, match="old node"):
        world.new.receive_key(answer.encode())

    assert not world.new_secure_file.exists()
    assert world.new.status().pending_requests == 1


def test_a_silent_chain_is_neither_yes_nor_no(tmp_path: Path, site: Site) -> None:
    """While the chain cannot be asked nothing is sealed, and the same request is answered once it can."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    world.chain.reachable = False

    with pytest.raises(ChainUnavailableError, match="no endpoint"):
        world.old.onboard(request)
    world.chain.reachable = True
    world.new.receive_key(world.old.onboard(request).encode())

    assert world.new_secure_file.read_bytes() == SECRET


def test_an_existing_secure_file_is_never_overwritten(tmp_path: Path, site: Site) -> None:
    """A new node that holds another secure file refuses the answer and keeps its own."""
    world = make_handover(tmp_path, site)
    answer = world.old.onboard(world.new.request_key().encode())
    world.new_secure_file.write_bytes(b"older than the handover")

    with pytest.raises(KeystoreError, match="other content"):
        world.new.receive_key(answer.encode())

    assert world.new_secure_file.read_bytes() == b"older than the handover"
    assert world.receipts("new") == []


def test_an_answer_after_expiry_is_refused(tmp_path: Path, site: Site) -> None:
    """Ten minutes after it was made a request takes no answer any more."""
    world = make_handover(tmp_path, site)
    answer = world.old.onboard(world.new.request_key().encode())
    world.clock.advance(timedelta(minutes=10))

    with pytest.raises(HandoverRefusedError, match=r"no request [0-9a-f]{64} waits here"):
        world.new.receive_key(answer.encode())


def test_derived_keys_agree_after_the_handover(tmp_path: Path, site: Site) -> None:
    """Both nodes derive the same key for a tag, another one for another tag, and neither is the secure file."""
    world = make_handover(tmp_path, site)
    world.new.receive_key(world.old.onboard(world.new.request_key().encode()).encode())

    key = world.old.derive_key("disk")

    assert world.new.derive_key("disk") == key
    assert world.old.derive_key("disk2") != key
    assert len(key) == 32


def test_a_node_without_the_secure_file_has_nothing_to_seal(tmp_path: Path, site: Site) -> None:
    """A new node asked to onboard refuses, and its answer-once memory is not used up."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()

    with pytest.raises(KeystoreError, match="cannot be read"):
        world.new.onboard(request)

    assert world.new.status().answered_requests == 0
