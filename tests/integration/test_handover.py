"""A handover between two replicators in one process: verified quotes, an in-memory chain, real files."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from dstack.attestation.evidence import Evidence
from dstack.errors import (
    AppraisalError,
    ChainUnavailableError,
    HandoverRefusedError,
    KeyReleaseDeniedError,
    KeystoreError,
    SealError,
)
from dstack.keys.sealing_stream import CHUNK
from dstack.values import Digest32, ReportData
from replicator.containers import Container
from replicator.documents import parse_request, serialise_request
from tests.worlds import BLOCK, SECRET, Site, app_compose, make_handover, make_node, place_genesis, receive

WEB = Container("web")


def test_secure_file_arrives_with_a_receipt_on_both_sides(tmp_path: Path, site: Site) -> None:
    """An allowed new node of the same app gets the secure file, mode 0600, and both nodes keep the same receipt."""
    world = make_handover(tmp_path, site)

    receipt = world.hand_over()

    assert world.new_secure_file.read_bytes() == SECRET
    assert stat.S_IMODE(world.new_secure_file.stat().st_mode) == 0o600
    (sent,), (received,) = world.receipts("old"), world.receipts("new")
    assert (sent.pop("role"), received.pop("role")) == ("sent", "received")
    assert sent == received
    assert (sent["receipt"], sent["simulated_root"]) == (receipt.members(), True)


def test_receipt_names_block_law_and_parties(tmp_path: Path, site: Site) -> None:
    """The receipt says at which block the new node was allowed, by which contract, and who the two sides are."""
    world = make_handover(tmp_path, site)
    request = world.request()

    terms = world.answer(request).receipt.terms

    assert terms.request == parse_request(request).request
    assert terms.transcript == parse_request(request).transcript()
    assert (terms.block_number, terms.block_hash) == (BLOCK.number, BLOCK.hash)
    assert terms.sender.compose_hash == world.old_machine.booted.app_compose.compose_hash
    assert terms.receiver.compose_hash == world.new_machine.booted.app_compose.compose_hash
    assert terms.receiver.instance_id == world.new_machine.booted.instance_id
    assert (terms.receiver.os_image_hash, terms.receiver.tcb_status) == (site.image.os_image_hash, "UpToDate")
    assert terms.simulated_root is True


def test_the_secret_is_nowhere_in_what_travels_or_is_logged(
    tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither documents nor logs nor receipts nor /status contain the secure file, nor its digest."""
    world = make_handover(tmp_path, site)

    with caplog.at_level("DEBUG"):
        request = world.request()
        sending = world.old.onboard(request)
        chunks = b"".join(map(bytes, sending.chunks(0)))
        receive(world.new, sending)

    digest = world.old.around.secure_file.held().digest.hex()
    kept = json.dumps([*world.receipts("old"), *world.receipts("new"), world.old.status()])
    for text in (request.decode(), sending.line, chunks.hex(), kept, caplog.text):
        assert SECRET.hex() not in text
        assert SECRET.decode() not in text
        assert digest not in text


def test_a_waiting_configuration_is_denied_by_its_rule(tmp_path: Path, site: Site) -> None:
    """A new node whose compose hash is not executed yet is denied by COMPOSE_HASH, and may ask again afterwards."""
    world = make_handover(tmp_path, site)
    waiting = world.new_machine.booted.app_compose.compose_hash
    world.chain.allowed.remove(waiting)
    request = world.request()

    with pytest.raises(KeyReleaseDeniedError, match=f"{waiting.hex()}.*not executed yet") as denied:
        world.old.onboard(request)
    world.chain.allowed.add(waiting)
    receive(world.new, world.old.onboard(request))

    assert (denied.value.rule, denied.value.block) == ("COMPOSE_HASH", BLOCK.number)
    assert world.new_secure_file.read_bytes() == SECRET


def test_an_old_node_that_was_removed_is_not_believed(tmp_path: Path, site: Site) -> None:
    """An answer of a node that the chain no longer allows is refused, and the request stays open."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    world.chain.allowed.remove(world.old_machine.booted.app_compose.compose_hash)

    with pytest.raises(KeyReleaseDeniedError, match="old node"):
        receive(world.new, sending)

    assert not world.new_secure_file.exists()
    assert [each["stage"] for each in world.new.status()["pending"]] == ["asked"]


def test_a_silent_chain_is_neither_yes_nor_no(tmp_path: Path, site: Site) -> None:
    """While the chain cannot be asked nothing is sealed, and the same request is answered once it can."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.chain.reachable = False

    with pytest.raises(ChainUnavailableError, match="no endpoint"):
        world.old.onboard(request)
    world.chain.reachable = True
    receive(world.new, world.old.onboard(request))

    assert world.new_secure_file.read_bytes() == SECRET


def test_a_secure_file_without_custody_is_never_overwritten(tmp_path: Path, site: Site) -> None:
    """A new node that holds something else, put there by hand, refuses the answer and keeps its own."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    world.new_secure_file.write_bytes(b"older than the handover")

    with pytest.raises(KeystoreError, match="other content and no custody record"):
        receive(world.new, sending)

    assert world.new_secure_file.read_bytes() == b"older than the handover"
    assert world.receipts("new") == []


def test_a_second_genesis_is_never_mixed_with_the_first(tmp_path: Path, site: Site) -> None:
    """Two nodes that both made a secret stay apart: neither takes the other's."""
    world = make_handover(tmp_path, site)
    place_genesis(world.new, b"another secret")

    with pytest.raises(HandoverRefusedError, match="this would be a second secret"):
        world.hand_over()

    assert world.new_secure_file.read_bytes() == b"another secret"


def test_a_machine_that_cannot_be_judged_says_so_of_itself(tmp_path: Path, site: Site) -> None:
    """A replicator on a machine of legacy mode refuses, and blames nobody's request for it."""
    world = make_handover(tmp_path, site)

    class Legacy:
        """The new node's machine, as an older host describes it."""

        def evidence(self, report_data: ReportData) -> Evidence:
            """Without a measurement document that counts."""
            config = json.loads(world.new_machine.platform.config) | {"tdx_attestation_variant": "legacy"}
            return replace(world.new_machine.evidence(report_data), config=json.dumps(config))

    node = make_node(tmp_path / "new", Legacy(), site, world.chain, world.clock)

    with pytest.raises(
        AppraisalError, match="this node's own evidence: tdx_attestation_variant: want lite, got legacy"
    ):
        node.request_key()


def test_the_recorded_genesis_decides(tmp_path: Path, site: Site) -> None:
    """Where the chain records another genesis, the old node hands nothing on and the new one takes nothing."""
    world = make_handover(tmp_path, site)
    request = world.request()
    sending = world.old.onboard(request)
    world.chain.recorded = Digest32(b"\x66" * 32)

    with pytest.raises(HandoverRefusedError, match="old node: genesis: the chain records 6666"):
        receive(world.new, sending)
    with pytest.raises(HandoverRefusedError, match="old node: genesis: the chain records 6666"):
        world.old.onboard(request)

    assert not world.new_secure_file.exists()


def test_nothing_is_handed_over_before_the_genesis_is_recorded(tmp_path: Path, site: Site) -> None:
    """Where the law requires a recorded genesis, both sides refuse until there is one."""
    world = make_handover(tmp_path, site)
    request = world.request()
    sending = world.old.onboard(request)
    world.chain.requires_genesis = True

    with pytest.raises(HandoverRefusedError, match=r"old node: genesis: want [0-9a-f]{64} recorded on the chain"):
        world.old.onboard(request)
    with pytest.raises(HandoverRefusedError, match="recorded on the chain, got nothing there"):
        receive(world.new, sending)
    world.chain.recorded = sending.receipt.terms.genesis
    receive(world.new, sending)

    assert world.new_secure_file.read_bytes() == SECRET


def test_an_answer_after_expiry_is_refused(tmp_path: Path, site: Site) -> None:
    """Ten minutes after it was made a request takes no answer any more."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    world.clock.advance(timedelta(minutes=10))

    with pytest.raises(HandoverRefusedError, match=r"no request [0-9a-f]{64} waits here"):
        receive(world.new, sending)


def test_derived_keys_agree_after_the_handover(tmp_path: Path, site: Site) -> None:
    """Both nodes derive the same key for a container and tag, and others for others."""
    world = make_handover(tmp_path, site)
    world.hand_over()

    key = world.old.derive_key(WEB, "disk")

    assert world.new.derive_key(WEB, "disk") == key
    assert len({key, world.old.derive_key(WEB, "disk2"), world.old.derive_key(Container("we"), "bdisk")}) == 3
    assert len(key) == 32


def test_a_node_without_the_secure_file_has_nothing_to_seal(tmp_path: Path, site: Site) -> None:
    """A new node asked to onboard refuses, and its answer-once memory is not used up."""
    world = make_handover(tmp_path, site)
    request = world.request()

    with pytest.raises(KeystoreError, match="secure file: want one, got none: this node holds none yet"):
        world.new.onboard(request)

    assert world.new.status()["answered_requests"] == 0


def test_there_and_back_again(tmp_path: Path, site: Site) -> None:
    """What an app changed at B comes back to A, whose own is as it was handed on; the chain of custody shows both."""
    world = make_handover(tmp_path, site)
    world.hand_over()
    world.new_secure_file.write_bytes(b"changed at the new node")

    back = receive(world.old, world.new.onboard(serialise_request(world.old.request_key()).encode()))

    assert (tmp_path / "old" / "secure-file").read_bytes() == b"changed at the new node"
    custody = world.old.around.secure_file.held().custody
    assert custody is not None
    assert (custody.depth, custody.links[-1]) == (2, back)


def test_what_was_changed_on_both_sides_is_not_overwritten(tmp_path: Path, site: Site) -> None:
    """A node whose own content was changed since keeps it: taking the other would lose something."""
    world = make_handover(tmp_path, site)
    world.hand_over()
    world.new_secure_file.write_bytes(b"changed at the new node")
    (tmp_path / "old" / "secure-file").write_bytes(b"changed at the old node")

    with pytest.raises(HandoverRefusedError, match="was changed since it was handed on"):
        receive(world.old, world.new.onboard(serialise_request(world.old.request_key()).encode()))

    assert (tmp_path / "old" / "secure-file").read_bytes() == b"changed at the old node"


def test_two_receivers_are_both_served(tmp_path: Path, site: Site) -> None:
    """Two new nodes ask at the same time; each gets the file, and the old node keeps both receipts."""
    world = make_handover(tmp_path, site)
    compose = app_compose("notes:new")
    third = make_node(tmp_path / "third", site.machine(tmp_path / "third", compose), site, world.chain, world.clock)
    requests = [world.request(), serialise_request(third.request_key()).encode()]
    sendings = [world.old.onboard(request) for request in requests]
    receipts = [receive(third, sendings[1]), receive(world.new, sendings[0])]

    assert third.around.secure_file.path.read_bytes() == world.new_secure_file.read_bytes() == SECRET
    assert {each["hash"] for each in world.receipts("old")} == {receipt.hash().hex() for receipt in receipts}


def test_duplicate_delivery_changes_nothing(tmp_path: Path, site: Site) -> None:
    """The same request gets the same answer, the same answer the same receipt, and one receipt is kept of it."""
    world = make_handover(tmp_path, site)
    request = world.request()
    first, second = world.old.onboard(request), world.old.onboard(request)

    receipts = [receive(world.new, first), receive(world.new, second), receive(world.new, first)]

    assert first.line == second.line
    assert receipts == [first.receipt] * 3
    assert (len(world.receipts("old")), len(world.receipts("new"))) == (1, 1)


def test_the_same_request_on_two_connections_gets_one_answer(tmp_path: Path, site: Site) -> None:
    """A duplicate that comes while the first is being answered gets the same answer, and one receipt is kept."""
    world = make_handover(tmp_path, site)
    request = world.request()

    class Overtaken:
        """Quotes as the old node's machine; once it lets the same request pass by before its answer."""

        lets_pass = False
        lines: ClassVar[list[str]] = []

        def evidence(self, report_data: ReportData) -> Evidence:
            """Fresh evidence."""
            if self.lets_pass:
                self.lets_pass = False
                self.lines.append(node.onboard(request).line)
            return world.old_machine.evidence(report_data)

    quotes = Overtaken()
    node = make_node(tmp_path / "old", quotes, site, world.chain, world.clock)
    assert node.identity.app_id
    quotes.lets_pass = True

    line = node.onboard(request).line

    assert quotes.lines == [line]
    assert len(world.receipts("old")) == 1


def test_a_dry_run_of_an_answered_request_says_what_would_be_done(tmp_path: Path, site: Site) -> None:
    """It would be answered again, unless the secure file was changed since."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.old.onboard(request)

    again = world.old.judge(request)
    (tmp_path / "old" / "secure-file").write_bytes(SECRET[::-1])

    assert again.block == BLOCK
    with pytest.raises(HandoverRefusedError, match="the secure file has changed since it was answered"):
        world.old.judge(request)


def test_an_answer_for_which_there_was_no_place_may_come_again(tmp_path: Path, site: Site) -> None:
    """A disk that refuses once does not use up the request."""
    world = make_handover(tmp_path, site)
    request = world.request()
    sending = world.old.onboard(request)
    in_the_way = world.new_secure_file.with_name(f"secure-file.incoming.{parse_request(request).request.hash().hex()}")
    in_the_way.touch()

    with pytest.raises(KeystoreError, match="cannot be written: File exists"):
        receive(world.new, sending)
    in_the_way.unlink()
    receive(world.new, sending)

    assert world.new_secure_file.read_bytes() == SECRET


def test_a_delivery_that_failed_does_not_free_the_next_one(tmp_path: Path, site: Site) -> None:
    """The end of one connection leaves alone what another began with the same answer meanwhile."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    failed = world.new.receive(sending.line.encode())
    failed.add(sending._cipher.seal(0, SECRET[::-1]))
    with pytest.raises(SealError, match="not the content that the receipt names"):
        world.new.finish(failed)

    following = world.new.receive(sending.line.encode())
    failed.close()

    with pytest.raises(HandoverRefusedError, match="on another connection"):
        world.new.receive(sending.line.encode())
    following.close()


def test_a_second_request_does_not_destroy_the_first(tmp_path: Path, site: Site) -> None:
    """An answer to the first of two requests is taken after the second was made."""
    world = make_handover(tmp_path, site)
    first = world.request()
    world.request()

    receive(world.new, world.old.onboard(first))

    assert world.new_secure_file.read_bytes() == SECRET


def test_a_transfer_goes_on_where_it_broke(tmp_path: Path, site: Site) -> None:
    """After two of four chunks the next delivery begins with the third, and the content is the same."""
    content = bytes(range(256)) * (3 * CHUNK // 256) + b"end"
    world = make_handover(tmp_path, site, content)
    request = world.request()
    sending = world.old.onboard(request)
    delivery = world.new.receive(sending.line.encode())
    chunks = sending.chunks(0)
    delivery.add(next(chunks))
    delivery.add(next(chunks))
    with pytest.raises(HandoverRefusedError, match="want 4 chunks, got 2; go on with chunk 2"):
        world.new.finish(delivery)
    delivery.close()
    world.clock.advance(timedelta(hours=2))

    again = world.new.receive(world.old.onboard(request).line.encode())
    assert (again.next_chunk, world.new.status()["pending"][0]["next_chunk"]) == (2, 2)
    again.close()
    receive(world.new, world.old.onboard(request))

    assert world.new_secure_file.read_bytes() == content


def test_one_connection_at_a_time_feeds_a_transfer(tmp_path: Path, site: Site) -> None:
    """A second connection cannot disturb a transfer that is going on."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    delivery = world.new.receive(sending.line.encode())

    with pytest.raises(HandoverRefusedError, match="on another connection"):
        world.new.receive(sending.line.encode())
    delivery.close()
    receive(world.new, sending)

    assert world.new_secure_file.read_bytes() == SECRET


def test_content_that_is_not_what_the_receipt_names_is_not_stored(tmp_path: Path, site: Site) -> None:
    """Other content under the stream's own key is noticed by its fingerprint, and nothing of it is left."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    delivery = world.new.receive(sending.line.encode())
    delivery.add(sending._cipher.seal(0, SECRET[::-1]))

    with pytest.raises(SealError, match="not the content that the receipt names"):
        world.new.finish(delivery)

    assert not world.new_secure_file.exists()
    assert list(tmp_path.glob("new/*incoming*")) == []


def test_content_that_changes_while_it_is_sent_is_not_sent(tmp_path: Path, site: Site) -> None:
    """The old node seals nothing but what its receipt names: its key has one nonce for each chunk."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    (tmp_path / "old" / "secure-file").write_bytes(SECRET[::-1])

    with pytest.raises(KeystoreError, match="it has changed since the answer was made; ask again"):
        list(map(bytes, sending.chunks(0)))


def test_after_a_restart_the_old_node_answers_the_same_request_anew(tmp_path: Path, site: Site) -> None:
    """A crash of the old node loses the stream's key; the new node takes the next answer and goes on."""
    world = make_handover(tmp_path, site)
    request = world.request()
    world.new.receive(world.old.onboard(request).line.encode()).close()

    restarted = make_node(
        tmp_path / "old", world.old_machine, site, world.chain, world.clock, seed=b"after the restart"
    )
    receipt = receive(world.new, restarted.onboard(request))

    assert world.new_secure_file.read_bytes() == SECRET
    assert receipt.hash().hex() in {each["hash"] for each in world.receipts("old")}
