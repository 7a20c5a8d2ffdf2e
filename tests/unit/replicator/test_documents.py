"""The documents of a handover: read back what was written, refuse everything else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import MessageMalformedError
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, OsImageHash
from replicator.documents import (
    MAX_SECURE_FILE,
    Address,
    Answer,
    Law,
    Party,
    QuotedRequest,
    Receipt,
    Request,
    Terms,
    parse_answer,
    parse_request,
    serialise_answer,
    serialise_request,
)

LAW = Law(31337, Address(b"\x11" * 20))
REQUEST = Request(Digest32(b"\x22" * 32), Digest32(b"\x33" * 32), AppId(b"\x44" * 20), LAW, 1_800_000_000)
OLD = Party(ComposeHash(b"\x55" * 32), InstanceId(b"\x66" * 20), OsImageHash(b"\x77" * 32))
NEW = Party(ComposeHash(b"\x88" * 32), None, OsImageHash(b"\x77" * 32))
TERMS = Terms(REQUEST.hash(), REQUEST.app_id, LAW, 42, Digest32(b"\x99" * 32), 1_799_999_000, OLD, NEW, False)
ANSWER = Answer(b"sealed", Receipt(TERMS, Digest32(b"\xaa" * 32)), b"evidence")


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
    law = Law(chain_id, LAW.contract)
    quoted = QuotedRequest(Request(Digest32(public_key), Digest32(nonce), REQUEST.app_id, law, expires_at), evidence)

    read = parse_request(serialise_request(quoted).encode())

    assert read == quoted
    assert read.request.hash() == quoted.request.hash()


def test_answer_survives_the_wire() -> None:
    """Reading a written answer gives the same answer, with and without instance ids."""
    assert parse_answer(serialise_answer(ANSWER).encode()) == ANSWER


def test_every_field_of_a_request_is_bound() -> None:
    """Two requests that differ in any one field have other hashes and other report data."""
    variants = [
        REQUEST,
        replace(REQUEST, public_key=Digest32(bytes(32))),
        replace(REQUEST, nonce=Digest32(bytes(32))),
        replace(REQUEST, app_id=AppId(bytes(20))),
        replace(REQUEST, law=replace(LAW, chain_id=1)),
        replace(REQUEST, law=replace(LAW, contract=Address(bytes(20)))),
        replace(REQUEST, expires_at=REQUEST.expires_at + 1),
    ]

    assert len({each.hash() for each in variants}) == len(variants)
    assert len({each.report_data() for each in variants}) == len(variants)


def test_every_term_is_bound_to_the_seal() -> None:
    """Terms that differ in any one field make another HPKE info, so a box opens under its own terms alone."""
    variants = [
        TERMS,
        replace(TERMS, request_hash=Digest32(bytes(32))),
        replace(TERMS, app_id=AppId(bytes(20))),
        replace(TERMS, law=replace(LAW, chain_id=1)),
        replace(TERMS, block_number=43),
        replace(TERMS, block_hash=Digest32(bytes(32))),
        replace(TERMS, at=TERMS.at + 1),
        replace(TERMS, sender=NEW),
        replace(TERMS, receiver=OLD),
        replace(TERMS, simulated_root=True),
    ]

    assert len({each.seal_info() for each in variants}) == len(variants)
    assert len({Receipt(each, ANSWER.receipt.sealed_sha256).report_data() for each in variants}) == len(variants)


def test_sealed_bytes_are_bound_to_the_old_nodes_quote() -> None:
    """Receipts for other sealed bytes make other report data."""
    other = replace(ANSWER.receipt, sealed_sha256=Digest32(bytes(32)))

    assert other.report_data() != ANSWER.receipt.report_data()


def request_with(**changes: Any) -> bytes:
    """The request document with members changed, or removed where the value is None."""
    members = json.loads(serialise_request(QuotedRequest(REQUEST, b"evidence"))) | changes
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
    doubled = serialise_request(QuotedRequest(REQUEST, b"evidence")).replace("{", '{"nonce":"00",', 1)

    with pytest.raises(MessageMalformedError, match="appears twice"):
        parse_request(doubled.encode())


def answer_with(**changes: Any) -> bytes:
    """The answer document with members changed."""
    return json.dumps(json.loads(serialise_answer(ANSWER)) | changes).encode()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"request_hash": "00" * 32}, "request_hash: want the receipt's, got another"),
        ({"sealed": ""}, "sealed: want 1 to"),
        ({"receipt": None}, "answer: receipt: want a JSON object"),
        ({"receipt": {}}, "'version' is missing"),
        ({"note": ""}, "unknown member 'note'"),
    ],
)
def test_malformed_answer_is_refused(changes: dict[str, Any], match: str) -> None:
    """An answer with a wrong or additional member is refused, and the error names it."""
    with pytest.raises(MessageMalformedError, match=match):
        parse_answer(answer_with(**changes))


@pytest.mark.parametrize("place", ["receipt", "sender"])
def test_unknown_members_inside_a_receipt_are_refused(place: str) -> None:
    """A receipt holds what both sides hash, and nothing else."""
    document = json.loads(serialise_answer(ANSWER))
    (document["receipt"] if place == "receipt" else document["receipt"]["sender"])["note"] = "x"

    with pytest.raises(MessageMalformedError, match="unknown member 'note'"):
        parse_answer(json.dumps(document).encode())


def test_oversized_box_is_refused() -> None:
    """A sealed box that no secure file of allowed size could make is refused."""
    with pytest.raises(MessageMalformedError, match="sealed: want 1 to"):
        parse_answer(answer_with(sealed="00" * (MAX_SECURE_FILE + 5000)))
