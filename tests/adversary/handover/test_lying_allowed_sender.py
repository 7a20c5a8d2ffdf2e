"""Attack: a node that the chain allows answers first and lies about what it sends. Another answer still counts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.attestation.evidence import serialise_evidence
from dstack.errors import HandoverRefusedError, SealError
from dstack.keys.sealing import seal
from dstack.keys.sealing_stream import CHUNK, StreamCipher, StreamShape
from dstack.values import Digest32
from replicator.answers import Answer, serialise_answer
from replicator.custody import Receipt
from replicator.documents import parse_request
from tests.handover_attacks import deliver, forged
from tests.worlds import SECRET, Handover, Site, make_handover

KEY = b"\x01" * 32
FILLING = b"\x66" * CHUNK


def lie(world: Handover, request: bytes, genuine: Answer, *, size: int) -> tuple[bytes, StreamCipher]:
    """An answer quoted by the old node's own machine: the genuine fingerprint, another size, and what seals chunks."""
    terms = replace(genuine.receipt.terms, size=size)
    sealed_key = seal(parse_request(request).request.public_key, KEY, terms.seal_info())
    receipt = Receipt(terms, Digest32(hashlib.sha256(sealed_key).digest()))
    evidence = serialise_evidence(world.old_machine.evidence(receipt.report_data()))
    line = serialise_answer(Answer(sealed_key, receipt, genuine.custody, evidence)).encode()
    return line, StreamCipher(KEY, StreamShape(size), terms.seal_info())


def genuine_parts(world: Handover, request: bytes) -> tuple[bytes, bytes]:
    """The old node's own answer: the line and the only chunk."""
    sending = world.old.onboard(request)
    (chunk,) = sending.chunks(0)
    return sending.line.encode(), chunk


def test_another_sender_is_taken_after_a_stream_that_does_not_open(tmp_path: Path, site: Site) -> None:
    """An accepted answer with rubbish behind it leaves the request to whoever answers next."""
    world = make_handover(tmp_path, site)
    request = world.request()
    line, chunk = genuine_parts(world, request)
    liars, _ = forged(world.old_machine, request, world.answer(request))

    with pytest.raises(SealError, match="chunk 0: not of this stream"):
        deliver(world, liars, b"\x66" * len(chunk))
    deliver(world, line, chunk)

    assert world.new_secure_file.read_bytes() == SECRET


def test_other_content_under_the_genuine_fingerprint_costs_one_try(tmp_path: Path, site: Site) -> None:
    """Chunks that opened and are not the content are forgotten with the try that shows it."""
    world = make_handover(tmp_path, site)
    request = world.request()
    line, chunk = genuine_parts(world, request)
    liars, cipher = lie(world, request, world.answer(request), size=len(SECRET))

    with pytest.raises(SealError, match="not the content that the receipt names"):
        deliver(world, liars, cipher.seal(0, b"\x66" * len(SECRET)))
    deliver(world, line, chunk)

    assert world.new_secure_file.read_bytes() == SECRET


def test_more_chunks_than_the_genuine_content_has_do_not_wedge_the_request(tmp_path: Path, site: Site) -> None:
    """A liar that names the genuine fingerprint over a larger size, and stops beyond its end, is begun anew after."""
    world = make_handover(tmp_path, site)
    request = world.request()
    line, chunk = genuine_parts(world, request)
    liars, cipher = lie(world, request, world.answer(request), size=3 * CHUNK)
    delivery = world.new.receive(liars)
    for number in range(2):
        delivery.add(cipher.seal(number, FILLING))
    with pytest.raises(HandoverRefusedError, match="want 3 chunks, got 2; go on with chunk 2"):
        world.new.finish(delivery)
    delivery.close()

    deliver(world, line, chunk)

    assert world.new_secure_file.read_bytes() == SECRET
    assert [path.name for path in world.new_secure_file.parent.glob("*.incoming.*")] == []
