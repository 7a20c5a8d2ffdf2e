"""Attack: more requests than a node can remember, or judge."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from dstack.errors import DstackError, HandoverRefusedError
from dstack.policy import BlockRef
from dstack.transport.listener import Listener
from replicator.app import replicator_app
from replicator.documents import parse_request, serialise_request
from replicator.handover import MAX_PENDING
from replicator.sending import MAX_AT_ONCE, MAX_WAITING
from tests.worlds import SECRET, MemoryChain, Site, make_handover, make_node, receive


def test_requests_are_bounded_and_the_first_ones_stay_good(tmp_path: Path, site: Site) -> None:
    """However often a new node is made to ask, its first request is not lost, and the places come back by time."""
    world = make_handover(tmp_path, site)
    first = world.request()
    for _ in range(MAX_PENDING - 1):
        world.request()

    with pytest.raises(HandoverRefusedError, match=f"at most {MAX_PENDING} waiting"):
        world.request()
    receive(world.new, world.old.onboard(first))
    world.clock.advance(timedelta(minutes=10))
    world.request()

    assert world.new_secure_file.read_bytes() == SECRET


def test_a_flood_of_rubbish_keeps_nobody_out(tmp_path: Path, site: Site) -> None:
    """Many callers with worthless requests at once are all refused, and the one good request is answered."""
    world = make_handover(tmp_path, site)
    good = world.request()
    captured = parse_request(good)
    rubbish = serialise_request(type(captured)(captured.request, captured.evidence[:-1])).encode()
    refusals: list[DstackError] = []

    def flood() -> None:
        for _ in range(20):
            try:
                world.old.onboard(rubbish)
            except DstackError as exc:
                refusals.append(exc)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    receive(world.new, world.old.onboard(good))
    for thread in threads:
        thread.join()

    assert len(refusals) == 160
    assert len(world.receipts("old")) == 1
    assert world.old.status()["answered_requests"] == 1


class SlowChain(MemoryChain):
    """Answers when it is let."""

    answers: ClassVar[threading.Event] = threading.Event()

    def block(self) -> BlockRef:
        """The newest block, late."""
        assert self.answers.wait(30)
        return super().block()


def test_a_flood_on_a_slow_chain_leaves_room_for_other_paths(tmp_path: Path, site: Site) -> None:
    """Few callers wait to be judged, more are told at once to come again; whoever asks another thing is answered."""
    world = make_handover(tmp_path, site)
    request = world.request()
    chain = SlowChain(world.chain.allowed)
    chain.answers.set()
    node = make_node(tmp_path / "old", world.old_machine, site, chain, world.clock)
    assert node.identity.app_id
    chain.answers.clear()
    codes: list[int] = []

    with Listener(replicator_app(node)).running() as listener:
        client = httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", trust_env=False, timeout=30)

        def ask() -> None:
            codes.append(client.post("/onboard?dry_run=1", content=request).status_code)

        threads = [threading.Thread(target=ask) for _ in range(60)]
        for thread in threads:
            thread.start()
        ends = time.monotonic() + 9
        while len(codes) < 60 - MAX_AT_ONCE - MAX_WAITING and time.monotonic() < ends:
            time.sleep(0.05)
        at_once, status = list(codes), client.get("/status").status_code
        chain.answers.set()
        for thread in threads:
            thread.join()
        client.close()

    assert (at_once, status) == ([503] * (60 - MAX_AT_ONCE - MAX_WAITING), 200)
    assert sorted(codes) == [200] * (MAX_AT_ONCE + MAX_WAITING) + at_once
