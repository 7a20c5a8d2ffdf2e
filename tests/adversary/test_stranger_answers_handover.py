"""Attack: somebody else answers a new node's request with a secret of their own.

The original replicator took a sealed box from anybody and overwrote its secure file with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.attestation.evidence import serialise_evidence
from dstack.errors import AppraisalError, HandoverRefusedError, KeyReleaseDeniedError, QuoteUntrustedError
from dstack.keys.sealing import seal
from dstack.values import AppId, Digest32
from replicator.documents import Answer, Party, Receipt, parse_answer, parse_request, serialise_answer
from tests.worlds import Machine, Site, app_compose, make_handover

STRANGERS_SECRET = b"a secret the stranger knows"


def forge(stranger: Machine, request: bytes, genuine: str, *, own_name: bool = False) -> bytes:
    """A well-formed answer by *stranger*: its own secret, the genuine receipt's terms, its own evidence."""
    terms = parse_answer(genuine.encode()).receipt.terms
    if own_name:
        booted = stranger.booted
        sender = Party(booted.app_compose.compose_hash, booted.instance_id, terms.sender.os_image_hash)
        terms = replace(terms, sender=sender)
    sealed = seal(parse_request(request).request.public_key, STRANGERS_SECRET, terms.seal_info())
    receipt = Receipt(terms, Digest32(hashlib.sha256(sealed).digest()))
    evidence = stranger.evidence(receipt.report_data())
    return serialise_answer(Answer(sealed, receipt, serialise_evidence(evidence))).encode()


def test_stranger_under_the_old_nodes_name_is_refused(tmp_path: Path, site: Site) -> None:
    """A genuine machine with another compose file that copies the old node's receipt is found out by its quote."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    stranger = site.machine(tmp_path / "stranger", app_compose("evil:1"))

    with pytest.raises(HandoverRefusedError, match="receipt: sender"):
        world.new.receive_key(forge(stranger, request, world.old.onboard(request)))

    assert not world.new_secure_file.exists()


def test_stranger_under_its_own_name_is_denied_by_the_chain(tmp_path: Path, site: Site) -> None:
    """A genuine machine of the same app id whose compose hash nobody allowed is denied by that rule."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    stranger = site.machine(tmp_path / "stranger", app_compose("evil:1"))

    with pytest.raises(KeyReleaseDeniedError, match="old node: Compose hash not allowed") as denied:
        world.new.receive_key(forge(stranger, request, world.old.onboard(request), own_name=True))

    assert denied.value.rule == "COMPOSE_HASH"
    assert not world.new_secure_file.exists()


def test_stranger_of_another_app_is_refused(tmp_path: Path, site: Site) -> None:
    """A machine of another app is refused even where the chain allows its compose hash."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    compose = world.old_machine.booted.app_compose.raw
    stranger = site.machine(tmp_path / "stranger", compose, app_id=AppId(b"\xee" * 20))

    with pytest.raises(HandoverRefusedError, match="old node: want app"):
        world.new.receive_key(forge(stranger, request, world.old.onboard(request), own_name=True))

    assert not world.new_secure_file.exists()


def test_stranger_on_a_foreign_platform_is_refused(tmp_path: Path, site: Site) -> None:
    """The right measurements, quoted under a root that nobody here trusts, count for nothing."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    foreign = Site.make(b"another maker")
    stranger = foreign.machine(tmp_path / "stranger", world.old_machine.booted.app_compose.raw)

    with pytest.raises(QuoteUntrustedError, match="step 3"):
        world.new.receive_key(forge(stranger, request, world.old.onboard(request)))

    assert not world.new_secure_file.exists()


def test_a_genuine_receipt_does_not_cover_other_bytes(tmp_path: Path, site: Site) -> None:
    """The old node's receipt and evidence around a stranger's sealed box are refused."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    genuine = parse_answer(world.old.onboard(request).encode())
    public_key = parse_request(request).request.public_key
    sealed = seal(public_key, STRANGERS_SECRET, genuine.receipt.terms.seal_info())

    with pytest.raises(HandoverRefusedError, match="other sealed bytes"):
        world.new.receive_key(serialise_answer(replace(genuine, sealed=sealed)).encode())

    assert not world.new_secure_file.exists()


def test_a_rewritten_receipt_is_not_bound_by_the_old_nodes_quote(tmp_path: Path, site: Site) -> None:
    """A stranger's box with a receipt made for it is refused: the old node's quote binds another receipt."""
    world = make_handover(tmp_path, site)
    request = world.new.request_key().encode()
    genuine = parse_answer(world.old.onboard(request).encode())
    sealed = seal(parse_request(request).request.public_key, STRANGERS_SECRET, genuine.receipt.terms.seal_info())
    receipt = Receipt(genuine.receipt.terms, Digest32(hashlib.sha256(sealed).digest()))

    with pytest.raises(AppraisalError, match="report data"):
        world.new.receive_key(serialise_answer(Answer(sealed, receipt, genuine.evidence)).encode())

    assert not world.new_secure_file.exists()
