"""Attack: somebody else answers a new node's request with a secret of their own.

The original replicator took a sealed box from anybody and overwrote its secure file with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import AppraisalError, HandoverRefusedError, KeyReleaseDeniedError, QuoteUntrustedError, SealError
from dstack.keys.sealing import seal
from dstack.values import AppId, Digest32
from replicator.answers import serialise_answer
from replicator.custody import Custody, Receipt
from replicator.documents import parse_request
from tests.handover_attacks import deliver, forged, party_of
from tests.worlds import Handover, Machine, Site, app_compose, make_handover, make_node, place_genesis


def forge(world: Handover, stranger: Machine, *, own_name: bool = False) -> tuple[bytes, bytes]:
    """A well-formed answer by *stranger*, in the old node's name or its own."""
    request = world.request()
    sender = party_of(world.site, stranger) if own_name else None
    genuine = world.answer(request)
    return forged(stranger, request, genuine, change=lambda terms: replace(terms, sender=sender) if sender else terms)


def test_stranger_under_the_old_nodes_name_is_refused(tmp_path: Path, site: Site) -> None:
    """A genuine machine with another compose file that copies the old node's receipt is found out by its quote."""
    world = make_handover(tmp_path, site)
    stranger = site.machine(tmp_path / "stranger", app_compose("evil:1"))

    with pytest.raises(HandoverRefusedError, match="receipt: sender"):
        deliver(world, *forge(world, stranger))

    assert not world.new_secure_file.exists()


def test_stranger_under_its_own_name_is_denied_by_the_chain(tmp_path: Path, site: Site) -> None:
    """A genuine machine of the same app id whose compose hash nobody allowed is denied by that rule."""
    world = make_handover(tmp_path, site)
    stranger = site.machine(tmp_path / "stranger", app_compose("evil:1"))

    with pytest.raises(KeyReleaseDeniedError, match="old node: Compose hash not allowed") as denied:
        deliver(world, *forge(world, stranger, own_name=True))

    assert denied.value.rule == "COMPOSE_HASH"
    assert not world.new_secure_file.exists()


def test_stranger_of_another_app_is_refused(tmp_path: Path, site: Site) -> None:
    """A machine of another app is refused even where the chain allows its compose hash."""
    world = make_handover(tmp_path, site)
    compose = world.old_machine.booted.app_compose.raw
    stranger = site.machine(tmp_path / "stranger", compose, app_id=AppId(b"\xee" * 20))

    with pytest.raises(HandoverRefusedError, match="old node: want app"):
        deliver(world, *forge(world, stranger, own_name=True))

    assert not world.new_secure_file.exists()


def test_stranger_on_a_foreign_platform_is_refused(tmp_path: Path, site: Site) -> None:
    """The right measurements, quoted under a root that nobody here trusts, count for nothing."""
    world = make_handover(tmp_path, site)
    foreign = Site.make(b"another maker")
    stranger = foreign.machine(tmp_path / "stranger", world.old_machine.booted.app_compose.raw)

    with pytest.raises(QuoteUntrustedError, match="step 3"):
        deliver(world, *forge(world, stranger))

    assert not world.new_secure_file.exists()


def test_a_genuine_receipt_does_not_cover_another_key(tmp_path: Path, site: Site) -> None:
    """The old node's receipt and evidence around a stranger's sealed key are refused."""
    world = make_handover(tmp_path, site)
    request = world.request()
    genuine = world.answer(request)
    public_key = parse_request(request).request.public_key
    sealed_key = seal(public_key, b"\x01" * 32, genuine.receipt.terms.seal_info())

    with pytest.raises(HandoverRefusedError, match="another sealed key"):
        world.new.receive(serialise_answer(replace(genuine, sealed_key=sealed_key)).encode())


def test_a_rewritten_receipt_is_not_bound_by_the_old_nodes_quote(tmp_path: Path, site: Site) -> None:
    """A stranger's key with a receipt made for it is refused: the old node's quote binds another receipt."""
    world = make_handover(tmp_path, site)
    request = world.request()
    genuine = world.answer(request)
    terms = genuine.receipt.terms
    sealed_key = seal(parse_request(request).request.public_key, b"\x01" * 32, terms.seal_info())
    receipt = Receipt(terms, Digest32(hashlib.sha256(sealed_key).digest()))

    with pytest.raises(AppraisalError, match="report data"):
        world.new.receive(serialise_answer(replace(genuine, sealed_key=sealed_key, receipt=receipt)).encode())


def test_a_strangers_chunks_after_a_genuine_answer_do_not_open(tmp_path: Path, site: Site) -> None:
    """Content cannot be exchanged behind the old node's answer."""
    world = make_handover(tmp_path, site)
    sending = world.old.onboard(world.request())
    size = sending.shape.sealed_length(0)

    with pytest.raises(SealError, match="chunk 0: not of this stream"):
        deliver(world, sending.line.encode(), b"\x66" * size)

    assert not world.new_secure_file.exists()


def test_a_past_that_is_not_the_receipts_is_refused(tmp_path: Path, site: Site) -> None:
    """The chain of custody beside a genuine receipt cannot be exchanged for another."""
    world = make_handover(tmp_path, site)
    genuine = world.answer(world.request())
    third = site.machine(tmp_path / "third", app_compose("notes:old"))
    other = place_genesis(make_node(tmp_path / "third", third, site, world.chain, world.clock), b"other")

    with pytest.raises(HandoverRefusedError, match="receipt: genesis"):
        world.new.receive(serialise_answer(replace(genuine, custody=Custody(other))).encode())
