"""Whole replicators under loss, duplication, reordering and crashes: one secret, never at an unlisted node."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dstack.errors import DstackError, HandoverRefusedError
from dstack.keys.sealing_stream import CHUNK
from replicator.bootstrap import make_genesis
from replicator.documents import serialise_request
from replicator.node import Replicator
from replicator.sending import Sending
from tests.worlds import Clock, Machine, MemoryChain, Site, app_compose, make_node, place_genesis, receive

SITE = Site.make()
CONTENT = bytes(range(256)) * (CHUNK // 256) + b"and a second chunk"
NAMES = ("first", "second", "third", "unlisted")
LISTED = NAMES[:3]


class HandoverNodes(RuleBasedStateMachine):
    """Three nodes that the chain lists and one that it does not; the first made the secret.

    What travels is kept, so that it may come late, twice, in another order, to the wrong node, or never.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="handover-nodes-"))
        self.clock, self.crashes = Clock(), 0
        self.requests: list[bytes] = []
        self.answers: list[tuple[Sending, list[bytes]]] = []
        self.machines: dict[str, Machine] = {}
        self.nodes: dict[str, Replicator] = {}
        self.chain = MemoryChain()

    @initialize()
    def boot(self) -> None:
        """Everybody is up; nothing was handed over."""
        for name in NAMES:
            self.machines[name] = SITE.machine(self.folder / name, app_compose(f"notes:{name}"))
        self.chain.allowed = {self.machines[name].booted.app_compose.compose_hash for name in LISTED}
        for name in NAMES:
            self.start(name)
        self.chain.recorded = place_genesis(self.nodes["first"], CONTENT).hash()

    def start(self, name: str) -> None:
        """Start a node on what is on its disk."""
        self.crashes += 1
        self.nodes[name] = make_node(
            self.folder / name, self.machines[name], SITE, self.chain, self.clock, seed=b"%d" % self.crashes
        )

    @rule(name=st.sampled_from(NAMES))
    def crashes_and_starts(self, name: str) -> None:
        self.start(name)

    @rule(minutes=st.sampled_from([1, 4, 11]))
    def time_passes(self, minutes: int) -> None:
        self.clock.advance(timedelta(minutes=minutes))

    @rule(name=st.sampled_from(NAMES))
    def asks(self, name: str) -> None:
        try:
            self.requests.append(serialise_request(self.nodes[name].request_key()).encode())
        except HandoverRefusedError:
            # Its places are full; teardown proves that they come back.
            return

    @precondition(lambda self: self.requests)
    @rule(name=st.sampled_from(NAMES), data=st.data())
    def is_asked_anything(self, name: str, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        try:
            sending = self.nodes[name].onboard(request)
        except DstackError:
            return
        self.answers.append((sending, list(map(bytes, sending.chunks(0)))))

    @precondition(lambda self: self.answers)
    @rule(name=st.sampled_from(NAMES), order=st.lists(st.integers(0, 1), max_size=3), data=st.data())
    def gets_some_chunks(self, name: str, order: list[int], data: st.DataObject) -> None:
        """Chunks come in any order, or break off."""
        sending, chunks = data.draw(st.sampled_from(self.answers))
        self._receive(name, sending, chunks, lambda _: order)

    @precondition(lambda self: self.answers)
    @rule(name=st.sampled_from(NAMES), data=st.data())
    def gets_all_chunks(self, name: str, data: st.DataObject) -> None:
        sending, chunks = data.draw(st.sampled_from(self.answers))
        self._receive(name, sending, chunks, lambda first: range(first, len(chunks)))

    @rule(sender=st.sampled_from(NAMES), receiver=st.sampled_from(NAMES), chunks=st.integers(0, 2))
    def goes_through(self, sender: str, receiver: str, chunks: int) -> None:
        """All three rounds in order, as far as anybody lets them; the stream may break off."""
        try:
            request = serialise_request(self.nodes[receiver].request_key()).encode()
            self.requests.append(request)
            sending = self.nodes[sender].onboard(request)
            sealed = list(map(bytes, sending.chunks(0)))
            self.answers.append((sending, sealed))
        except DstackError:
            return
        self._receive(receiver, sending, sealed, lambda first: range(first, min(chunks, len(sealed))))

    def _receive(self, name: str, sending: Sending, chunks: list[bytes], order: Callable[[int], Iterable[int]]) -> None:
        """The node gets the answer and *order* of the chunks, given the first that it lacks; it may refuse them."""
        try:
            delivery = self.nodes[name].receive(sending.line.encode())
        except DstackError:
            return
        try:
            for number in order(delivery.next_chunk):
                if not delivery.is_complete:
                    delivery.add(chunks[number])
            self.nodes[name].finish(delivery)
        except DstackError:
            pass
        finally:
            delivery.close()

    @rule(name=st.sampled_from(NAMES))
    def tries_to_make_a_second_secret(self, name: str) -> None:
        node = self.nodes[name]
        with pytest.raises(HandoverRefusedError, match="the chain records genesis"):
            make_genesis(node.parts, node.law)

    @invariant()
    def there_is_one_secret(self) -> None:
        """Whoever holds something holds that, whole, and with a custody record that leads to the one genesis."""
        for name, node in self.nodes.items():
            if node.around.secure_file.exists():
                assert name != "unlisted"
                held = node.around.secure_file.held()
                assert node.around.secure_file.path.read_bytes() == CONTENT
                assert held.custody is not None
                assert held.custody.genesis.hash() == self.chain.recorded

    @invariant()
    def the_first_node_never_loses_it(self) -> None:
        if self.nodes:
            assert (self.folder / "first" / "secure-file").read_bytes() == CONTENT

    def teardown(self) -> None:
        """Whatever happened: after a restart of both sides, any listed node can still get the secret."""
        try:
            if self.nodes:
                self.clock.advance(timedelta(minutes=11))
                for name in LISTED:
                    self.start(name)
                for name in LISTED[1:]:
                    request = serialise_request(self.nodes[name].request_key()).encode()
                    receive(self.nodes[name], self.nodes["first"].onboard(request))
                    assert (self.folder / name / "secure-file").read_bytes() == CONTENT
        finally:
            shutil.rmtree(self.folder)


HandoverNodes.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestHandoverNodes(HandoverNodes.TestCase):
    """Without the announcements of every start."""

    def setUp(self) -> None:
        logging.getLogger("replicator").setLevel(logging.ERROR)
        super().setUp()

    def tearDown(self) -> None:
        super().tearDown()
        logging.getLogger("replicator").setLevel(logging.NOTSET)
