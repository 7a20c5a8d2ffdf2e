"""The documents of a handover: read back what was written, refuse everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import MessageMalformedError
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash
from replicator.answers import Answer, parse_answer, serialise_answer
from replicator.custody import Custody, Genesis, Receipt, Terms
from replicator.documents import (
    Address,
    Law,
    Party,
    QuotedRequest,
    Request,
    parse_request,
    serialise_request,
)

LAW = Law(31337, Address(b"\x10" * 20), Address(b"\x11" * 20))
REQUEST = Request(Digest32(b"\x22" * 32), Digest32(b"\x33" * 32), AppId(b"\x44" * 20), LAW, 1_800_000_000)
QUOTED = QuotedRequest(REQUEST, b"evidence")
OLD = Party(
    ComposeHash(b"\x55" * 32), InstanceId(b"\x66" * 20), OsImageHash(b"\x77" * 32), DeviceId(b"\xde" * 32), "UpToDate"
)
NEW = replace(OLD, compose_hash=ComposeHash(b"\x88" * 32), instance_id=None)
GENESIS = Genesis(REQUEST.app_id, LAW, Digest32(b"\xf0" * 32), 7, Digest32(b"\x01" * 32), 1_799_000_000, OLD)
TERMS = Terms(
    request=REQUEST,
    transcript=QUOTED.transcript(),
    block_number=42,
    block_hash=Digest32(b"\x99" * 32),
    at=1_799_999_000,
    sender=OLD,
    receiver=NEW,
    simulated_root=False,
    fingerprint=GENESIS.fingerprint,
    size=7,
    genesis=GENESIS.hash(),
    custody=GENESIS.hash(),
    depth=0,
)
RECEIPT = Receipt(TERMS, Digest32(b"\xaa" * 32))
ANSWER = Answer(b"k" * 80, RECEIPT, Custody(GENESIS), b"evidence")


@given(
    public_key=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=32, max_size=32),
    chain_id=st.integers(0, 2**53 - 1),
    expires_at=st.integers(0, 2**53 - 1),
    evidence=st.binary(min_size=1, max_size=200),
)
def test_request_survives_the_wire(
    public_key: bytes, nonce: bytes, chain_id: int, expires_at: int, evidence: bytes
) -> None:
    """Reading a written request gives the same request, with the same hash."""
    law = replace(LAW, chain_id=chain_id)
    quoted = QuotedRequest(Request(Digest32(public_key), Digest32(nonce), REQUEST.app_id, law, expires_at), evidence)

    read = parse_request(serialise_request(quoted).encode())

    assert read == quoted
    assert read.transcript() == quoted.transcript()


@pytest.mark.parametrize("links", [0, 1, 2])
def test_answer_survives_the_wire(links: int) -> None:
    """Reading a written answer gives the same answer, whatever the length of its chain of custody."""
    custody = Custody(GENESIS)
    for _ in range(links):
        custody = custody.after(replace(RECEIPT, terms=replace(TERMS, custody=custody.head, depth=custody.depth)))
    answer = replace(ANSWER, custody=custody)

    assert parse_answer(serialise_answer(answer).encode()) == answer


def test_every_field_of_a_request_is_bound() -> None:
    """Two requests that differ in any one field have other hashes and other report data."""
    variants = [
        REQUEST,
        replace(REQUEST, public_key=Digest32(bytes(32))),
        replace(REQUEST, nonce=Digest32(bytes(32))),
        replace(REQUEST, app_id=AppId(bytes(20))),
        replace(REQUEST, law=replace(LAW, chain_id=1)),
        replace(REQUEST, law=replace(LAW, operator=Address(bytes(20)))),
        replace(REQUEST, law=replace(LAW, contract=Address(bytes(20)))),
        replace(REQUEST, expires_at=REQUEST.expires_at + 1),
    ]

    assert len({each.hash() for each in variants}) == len(variants)
    assert len({each.report_data() for each in variants}) == len(variants)


def test_the_transcript_covers_the_evidence() -> None:
    """The same request with other evidence is another transcript."""
    assert QUOTED.transcript() != replace(QUOTED, evidence=b"other").transcript()


def test_every_term_is_bound_to_the_seal_and_to_the_old_nodes_quote() -> None:
    """Terms that differ in any one field make another occasion, so a box opens under its own terms alone."""
    other: dict[str, Any] = {
        "request": replace(REQUEST, nonce=Digest32(bytes(32))),
        "transcript": Digest32(bytes(32)),
        "block_number": 43,
        "block_hash": Digest32(bytes(32)),
        "at": 1,
        "sender": NEW,
        "receiver": OLD,
        "simulated_root": True,
        "fingerprint": Digest32(bytes(32)),
        "size": 8,
        "genesis": Digest32(bytes(32)),
        "custody": Digest32(bytes(32)),
        "depth": 1,
    }
    variants = [TERMS, *(replace(TERMS, **{name: value}) for name, value in other.items())]

    assert set(other) == set(Terms.__dataclass_fields__)
    assert len({each.seal_info() for each in variants}) == len(variants)
    assert len({replace(RECEIPT, terms=each).report_data() for each in variants}) == len(variants)
    assert replace(RECEIPT, sealed_key_sha256=Digest32(bytes(32))).report_data() != RECEIPT.report_data()


def test_the_three_roles_never_share_report_data() -> None:
    """A quote made as new node, as old node or for a genesis cannot serve as another of them."""
    assert len({REQUEST.report_data(), RECEIPT.report_data(), GENESIS.report_data()}) == 3


def request_with(**changes: Any) -> bytes:
    """The request document with members changed, or removed where the value is None."""
    members = json.loads(serialise_request(QUOTED)) | changes
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 1}, "request: version: want 2, got 1"),
        ({"version": "2"}, "version: want an integer"),
        ({"role": "old-node"}, "role: want 'new-node'"),
        ({"nonce": None}, "'nonce' is missing"),
        ({"nonce": "00" * 31}, "nonce: Digest32: want 32 bytes, got 31"),
        ({"app_id": "xy" * 20}, "app_id: want hexadecimal"),
        ({"chain_id": True}, "chain_id: want an integer"),
        ({"chain_id": -1}, "chain_id: want 0 to"),
        ({"operator": None}, "'operator' is missing"),
        ({"expires_at": 1.5}, "expires_at: want an integer"),
        ({"expires_at": 2**53}, "expires_at: want 0 to"),
        ({"evidence": ""}, "evidence: want 1 to"),
        ({"command": "rm"}, "unknown member 'command'"),
    ],
)
def test_malformed_request_is_refused(changes: dict[str, Any], match: str) -> None:
    """A request with a wrong, missing or additional member is refused, and the error names it."""
    with pytest.raises(MessageMalformedError, match=match):
        parse_request(request_with(**changes))


@pytest.mark.parametrize("raw", [b"", b"null", b"[]", b"{", b"\xff", b"ETH_RPC_URL=x"])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    """Bytes that are not one JSON object are neither a request nor an answer."""
    with pytest.raises(MessageMalformedError, match="request: "):
        parse_request(raw)
    with pytest.raises(MessageMalformedError, match="answer: "):
        parse_answer(raw)


def test_duplicate_member_is_refused() -> None:
    """A request that says one thing twice is refused."""
    doubled = serialise_request(QUOTED).replace("{", '{"nonce":"00",', 1)

    with pytest.raises(MessageMalformedError, match="appears twice"):
        parse_request(doubled.encode())


def answer_with(**changes: Any) -> bytes:
    """The answer document with members changed."""
    return json.dumps(json.loads(serialise_answer(ANSWER)) | changes).encode()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sealed_key": "00" * 79}, "sealed_key: want 80 bytes, got 79"),
        ({"receipt": None}, "answer: receipt: want a JSON object"),
        ({"receipt": {}}, "'version' is missing"),
        ({"custody": {"genesis": {}, "links": {}}}, "links: want an array"),
        ({"custody": {"genesis": {}, "links": [{}] * 65}}, "links: want an array of at most 64"),
        ({"note": ""}, "unknown member 'note'"),
        ({"role": "new-node"}, "role: want 'answer'"),
    ],
)
def test_malformed_answer_is_refused(changes: dict[str, Any], match: str) -> None:
    """An answer with a wrong or additional member is refused, and the error names it."""
    with pytest.raises(MessageMalformedError, match=match):
        parse_answer(answer_with(**changes))


@pytest.mark.parametrize(
    "place", [("receipt",), ("receipt", "sender"), ("receipt", "request"), ("custody",), ("custody", "genesis")]
)
def test_unknown_members_inside_an_answer_are_refused(place: tuple[str, ...]) -> None:
    """Each object in an answer holds what both sides hash, and nothing else."""
    document = inner = json.loads(serialise_answer(ANSWER))
    for name in place:
        inner = inner[name]
    inner["note"] = "x"

    with pytest.raises(MessageMalformedError, match="unknown member 'note'"):
        parse_answer(json.dumps(document).encode())


@pytest.mark.parametrize("status", ["", "<b>", "Up ToDate", "x" * 41])
def test_a_tcb_status_is_a_word(status: str) -> None:
    """What would be text of the other side's choice on a page is a bounded word."""
    document = json.loads(serialise_answer(ANSWER))
    document["receipt"]["sender"]["tcb_status"] = status

    with pytest.raises(MessageMalformedError, match="tcb_status: want a word"):
        parse_answer(json.dumps(document).encode())
