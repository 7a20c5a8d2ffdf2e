"""Attack: a stream that is too long, too short, out of order, or a claim of a size that nobody can send."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dstack.keys.sealing_stream import CHUNK, MAX_CONTENT
from dstack.transport.listener import Listener
from replicator.answers import MAX_ANSWER
from replicator.app import replicator_app
from tests.handover_attacks import forged
from tests.worlds import Handover, Site, make_handover

CONTENT = bytes(range(256)) * (2 * CHUNK // 256) + b"end"


def post(world: Handover, body: bytes, *, query: str = "") -> tuple[int, dict[str, Any]]:
    """What the new node answers to round 3."""
    with (
        Listener(replicator_app(world.new)).running() as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", trust_env=False) as client,
    ):
        answer = client.post(f"/receiveKey{query}", content=body)
        return answer.status_code, answer.json()


@pytest.fixture
def world(tmp_path: Path, site: Site) -> Handover:
    """Content of three chunks."""
    return make_handover(tmp_path, site, CONTENT)


@pytest.fixture
def parts(world: Handover) -> list[bytes]:
    """The line and the three sealed chunks."""
    sending = world.old.onboard(world.request())
    return [sending.line.encode() + b"\n", *map(bytes, sending.chunks(0))]


def test_the_whole_stream_is_taken(world: Handover, parts: list[bytes]) -> None:
    """The same parts in order are stored: the refusals below are about what was changed."""
    assert post(world, b"".join(parts))[0] == 200
    assert world.new_secure_file.read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_stream_that_ends_early_is_not_stored(world: Handover, parts: list[bytes], kept: int) -> None:
    """Whole chunks may be missing at the end: the answer says with which one to go on."""
    code, body = post(world, b"".join(parts[:kept]))

    assert (code, body["error"]) == (409, f"stream: want 3 chunks, got {kept - 1}; go on with chunk {kept - 1}")
    assert not world.new_secure_file.exists()


def test_half_a_chunk_counts_for_nothing(world: Handover, parts: list[bytes]) -> None:
    """A chunk that is cut is not opened, and comes again."""
    assert post(world, b"".join(parts)[:-1])[0] == 409
    code, _ = post(world, parts[0] + parts[3], query="?from=2")

    assert code == 200
    assert world.new_secure_file.read_bytes() == CONTENT


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 1, 1, 2, 3), (0, 1, 3), (0, 2, 3), (0, 3, 2, 1)])
def test_chunks_in_another_order_are_refused(world: Handover, parts: list[bytes], order: tuple[int, ...]) -> None:
    """Swapped, repeated and left out chunks do not open."""
    code, body = post(world, b"".join(parts[number] for number in order))

    assert code in (400, 409)
    assert body["kind"] in ("SealError", "HandoverRefusedError")
    assert not world.new_secure_file.exists()


def test_more_than_the_stream_is_refused(world: Handover, parts: list[bytes]) -> None:
    """What follows the last chunk is not passed over."""
    code, body = post(world, b"".join([*parts, b"x"]))

    assert (code, body["error"]) == (400, "stream: want nothing after the last chunk, got more")
    assert not world.new_secure_file.exists()


def test_a_line_without_end_is_refused(world: Handover) -> None:
    """An answer is read only up to the length that answers have."""
    code, body = post(world, b"{" * (MAX_ANSWER + 100_000))

    assert (code, body["kind"]) == (400, "MessageMalformedError")


def test_white_space_without_end_is_refused(world: Handover) -> None:
    """Nothing is kept of a body that never begins."""
    code, body = post(world, b" " * (MAX_ANSWER + 100_000))

    assert (code, body["error"]) == (400, "answer: want a document, got white space")


@pytest.mark.parametrize("size", [0, MAX_CONTENT + 1, 2**53 - 1])
def test_a_size_that_nobody_may_send_is_refused(world: Handover, parts: list[bytes], size: int) -> None:
    """A receipt over nothing, or over more than 16 GiB, is malformed before anything is made for it."""
    line = json.loads(parts[0])
    line["receipt"]["size"] = size
    code, body = post(world, json.dumps(line).encode() + b"\n")

    assert (code, body["error"]) == (400, f"content: want 1 to {MAX_CONTENT} bytes, got {size}")


def test_the_largest_size_is_taken(world: Handover) -> None:
    """A receipt over 16 GiB is accepted, and nothing is set aside for it before it comes."""
    request = world.request()
    line, _ = forged(
        world.old_machine, request, world.answer(request), change=lambda terms: replace(terms, size=MAX_CONTENT)
    )
    code, body = post(world, line + b"\n")

    assert (code, body["error"]) == (409, "stream: want 16384 chunks, got 0; go on with chunk 0")
    assert [path.stat().st_size for path in world.new_secure_file.parent.glob("*.incoming.*")] == [0]


def test_nobody_goes_on_where_nothing_began(world: Handover, parts: list[bytes]) -> None:
    """A delivery from a later chunk than the next one is refused."""
    code, body = post(world, parts[0] + parts[3], query="?from=2")

    assert (code, body["error"]) == (409, "stream: want it from chunk 0 on, got it from 2 on")
