"""What attackers of a handover do: have others quote a request, answer in the old node's place, change what travels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from dstack.attestation.evidence import Evidence, serialise_evidence
from dstack.attestation.report_data import report_data
from dstack.keys.sealing import seal
from dstack.keys.sealing_stream import StreamCipher, StreamShape
from dstack.policy import boot_info
from dstack.simulator.platform import Defects
from dstack.values import AppId, Digest32
from replicator.answers import Answer, serialise_answer
from replicator.custody import Receipt, Terms, content_digest, fingerprint_of
from replicator.documents import Party, QuotedRequest, Request, parse_request, serialise_request
from tests.worlds import APP_ID, NOW, Handover, Machine, Site

STRANGERS_SECRET = b"a secret the stranger knows"


def unfit_machine(world: Handover, *, defects: Defects | None = None, app_id: AppId = APP_ID) -> Machine:
    """Another machine that runs the new node's compose file."""
    compose = world.new_machine.booted.app_compose.raw
    return world.site.machine(world.folder / "unfit", compose, app_id=app_id, defects=defects)


def quoted_by(machine: Machine, request: Request, change: Callable[[Evidence], Evidence] = lambda same: same) -> bytes:
    """*request* with evidence of *machine*, which may be changed."""
    evidence = change(machine.evidence(request.report_data()))
    return serialise_request(QuotedRequest(request, serialise_evidence(evidence))).encode()


def request_quoted_by(
    world: Handover, machine: Machine, change: Callable[[Evidence], Evidence] = lambda same: same
) -> bytes:
    """The new node's request, quoted by *machine* in its place."""
    return quoted_by(machine, parse_request(world.request()).request, change)


def party_of(site: Site, machine: Machine) -> Party:
    """How a receipt names *machine*."""
    expected = report_data("app-data", b"who are you")
    appraisal = site.verifier.appraise(machine.evidence(expected), expected=expected, at=NOW)
    return Party.of(boot_info(appraisal))


def forged(
    stranger: Machine,
    request: bytes,
    genuine: Answer,
    *,
    change: Callable[[Terms], Terms] = lambda same: same,
) -> tuple[bytes, bytes]:
    """A well-formed answer by *stranger* with a secret of its own: the line and the only chunk."""
    fingerprint = fingerprint_of(content_digest(STRANGERS_SECRET))
    terms = change(replace(genuine.receipt.terms, fingerprint=fingerprint, size=len(STRANGERS_SECRET)))
    key = b"\x01" * 32
    sealed_key = seal(parse_request(request).request.public_key, key, terms.seal_info())
    receipt = Receipt(terms, Digest32(hashlib.sha256(sealed_key).digest()))
    evidence = serialise_evidence(stranger.evidence(receipt.report_data()))
    chunk = StreamCipher(key, StreamShape(len(STRANGERS_SECRET)), terms.seal_info()).seal(0, STRANGERS_SECRET)
    return serialise_answer(Answer(sealed_key, receipt, genuine.custody, evidence)).encode(), chunk


def deliver(world: Handover, line: bytes, chunk: bytes) -> None:
    """Bring an answer to the new node."""
    delivery = world.new.receive(line)
    try:
        delivery.add(chunk)
        world.new.finish(delivery)
    finally:
        delivery.close()


def nothing_left(world: Handover) -> bool:
    """Whether the old node has handed nothing over and the new one holds nothing."""
    return not world.new_secure_file.exists() and world.receipts("old") == world.receipts("new") == []
