"""What a node forgets by itself: keys and partial files of what has ended, and nothing before its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.attestation.appraise import Appraisal
from dstack.errors import HandoverRefusedError
from dstack.keys.sealing_stream import CHUNK
from dstack.policy import BootInfo
from replicator.documents import serialise_request
from replicator.forgetting import forgetting
from replicator.handover import REQUEST_LIFETIME, TRANSFER_LIFETIME
from replicator.law import Verdict
from replicator.node import Replicator
from replicator.receiving import Delivery
from replicator.sending import Sending
from tests.worlds import Handover, MemoryChain, Site, make_handover, make_node

CONTENT = bytes(range(256)) * (CHUNK // 256) + b"and a second chunk"
SECOND = timedelta(seconds=1)


@pytest.fixture
def world(tmp_path: Path, site: Site) -> Handover:
    """An old and a new node, and a content of two chunks."""
    return make_handover(tmp_path, site, CONTENT)


def begun(world: Handover) -> tuple[Sending, Delivery]:
    """A transfer of which one chunk has come, and the connection that holds it."""
    sending = world.old.onboard(world.request())
    delivery = world.new.receive(sending.line.encode())
    delivery.add(next(sending.chunks(0)))
    return sending, delivery


def partial_files(world: Handover) -> list[str]:
    """What lies beside the new node's secure file."""
    return [path.name for path in world.new_secure_file.parent.glob("*incoming*")]


def private_keys(node: Replicator) -> int:
    """How many private keys of requests a node has in its memory."""
    return sum(bool(each.private_key) for each in node._receiver._new.asked)


def stream_keys(node: Replicator) -> int:
    """How many keys of streams that it has sent."""
    return len(node._sender._keys)


def comes_true(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether *condition* holds within so many seconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_the_key_of_a_request_that_was_never_answered_goes(world: Handover) -> None:
    """At its expiry, not before, and though nobody asks anything."""
    world.request()
    world.clock.advance(REQUEST_LIFETIME - SECOND)
    world.new.forget_ended()
    assert private_keys(world.new) == 1

    world.clock.advance(SECOND)
    world.new.forget_ended()

    assert private_keys(world.new) == 0


def test_what_came_of_a_transfer_goes_at_its_end(world: Handover) -> None:
    """Keys on both sides and the partial file stay as long as it may be gone on with, and no longer."""
    begun(world)[1].close()
    world.clock.advance(REQUEST_LIFETIME + TRANSFER_LIFETIME - SECOND)
    for node in (world.old, world.new):
        node.forget_ended()
    assert (private_keys(world.new), len(partial_files(world)), stream_keys(world.old)) == (1, 1, 1)

    world.clock.advance(SECOND)
    for node in (world.old, world.new):
        node.forget_ended()

    assert (private_keys(world.new), partial_files(world), stream_keys(world.old)) == (0, [], 0)
    assert (world.new._receiver._transfers, world.old.status()["answered_requests"]) == ({}, 0)
    assert len(world.receipts("old")) == 1


def test_a_transfer_that_is_received_now_goes_on_to_its_end(world: Handover) -> None:
    """Long after its request has expired, forgetting takes nothing from a connection that brings chunks."""
    sending, delivery = begun(world)
    world.clock.advance(REQUEST_LIFETIME + TRANSFER_LIFETIME - SECOND)
    world.new.forget_ended()

    delivery.add(next(sending.chunks(1)))
    world.new.finish(delivery)

    assert world.new_secure_file.read_bytes() == CONTENT


def test_a_connection_keeps_its_file_until_it_lets_go(world: Handover) -> None:
    """At the end of a transfer its connection gets no further; the file that it may be writing goes with it."""
    sending, delivery = begun(world)
    world.clock.advance(REQUEST_LIFETIME + TRANSFER_LIFETIME)
    world.new.forget_ended()
    assert (private_keys(world.new), len(partial_files(world))) == (0, 1)

    with pytest.raises(HandoverRefusedError, match="stream: the request that it answers has ended; want a new one"):
        delivery.add(next(sending.chunks(1)))
    delivery.close()

    assert (partial_files(world), world.new_secure_file.exists()) == ([], False)


def test_what_is_stored_while_its_request_ends_is_stored(tmp_path: Path, site: Site) -> None:
    """A transfer whose end comes while the chain is asked for the last time is complete: the answer is its receipt."""
    world = make_handover(tmp_path, site, CONTENT)
    chain = Meanwhile(world.chain.allowed)
    new = make_node(tmp_path / "new", world.new_machine, site, chain, world.clock)
    sending = world.old.onboard(_request(new))
    delivery = new.receive(sending.line.encode())
    for sealed in sending.chunks(0):
        delivery.add(sealed)

    chain.then = lambda: _end(world, new)
    receipt = new.finish(delivery)
    delivery.close()
    new.forget_ended()

    assert receipt == sending.receipt
    assert world.new_secure_file.read_bytes() == CONTENT
    assert (private_keys(new), partial_files(world), new._receiver._transfers) == (0, [], {})


def test_an_answer_that_ends_while_it_is_asked_for_again_is_refused(tmp_path: Path, site: Site) -> None:
    """Its key is gone when the chain has said yes: that is a refusal, no defect."""
    world = make_handover(tmp_path, site, CONTENT)
    chain = Meanwhile(world.chain.allowed)
    old = make_node(tmp_path / "old", world.old_machine, site, chain, world.clock)
    request = world.request()
    old.onboard(request)

    chain.then = lambda: _end(world, old)

    with pytest.raises(HandoverRefusedError, match="request: its answer has ended meanwhile; want a new request"):
        old.onboard(request)


def test_it_forgets_though_nobody_asks(world: Handover) -> None:
    """For as long as the program runs, and no longer; the thread ends with it."""
    begun(world)[1].close()
    world.clock.advance(REQUEST_LIFETIME + TRANSFER_LIFETIME)

    with forgetting(world.new, every=0.01), forgetting(world.old, every=0.01):
        assert comes_true(lambda: (private_keys(world.new), partial_files(world)) == (0, []))
        assert comes_true(lambda: stream_keys(world.old) == 0)

    assert [each.name for each in threading.enumerate() if each.name == "forgetting"] == []


def test_the_end_is_not_waited_for(world: Handover) -> None:
    """However rarely it forgets, a program that ends does so at once."""
    began = time.monotonic()

    with forgetting(world.new, every=60):
        pass

    assert time.monotonic() - began < 2


def test_a_disk_that_refuses_is_told_and_tried_again(world: Handover, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be removed now is removed later, and is not the end of forgetting."""
    begun(world)[1].close()
    world.clock.advance(REQUEST_LIFETIME + TRANSFER_LIFETIME)
    (name,) = partial_files(world)
    path = world.new_secure_file.with_name(name)
    path.unlink()
    path.mkdir()  # which no file's removal removes

    with caplog.at_level(logging.ERROR, "replicator"), forgetting(world.new, every=0.05):
        assert comes_true(lambda: len(caplog.records) > 1)
        assert private_keys(world.new) == 0
        path.rmdir()
        path.touch()
        assert comes_true(lambda: partial_files(world) == [])

    assert caplog.records[0].getMessage() == "what has ended cannot be forgotten now; tried again in 0 s"


@dataclass(slots=True)
class Meanwhile(MemoryChain):
    """A chain that takes its time: something happens before it says its next word about a node."""

    then: Callable[[], None] = lambda: None

    def judge(self, boot: BootInfo, appraisal: Appraisal) -> Verdict:
        """As any other, later."""
        then, self.then = self.then, lambda: None
        then()
        return MemoryChain.judge(self, boot, appraisal)


def _end(world: Handover, node: Replicator) -> None:
    """Everything that was asked or answered until now ends."""
    world.clock.advance(REQUEST_LIFETIME + TRANSFER_LIFETIME)
    node.forget_ended()


def _request(node: Replicator) -> bytes:
    return serialise_request(node.request_key()).encode()
