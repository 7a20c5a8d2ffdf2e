"""The documents of a handover, version 2: request, receipt, answer. Pure: JSON text to values and back.

Every document is one JSON object, read strictly: no unknown, missing or duplicate members, all lengths bounded. What a
quote binds is the canonical form (RFC 8785) of a document, so that both sides hash the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import rfc8785

from dstack.attestation.report_data import report_data
from dstack.errors import MessageMalformedError
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, OsImageHash, ReportData, SizedBytes

VERSION = 2
MAX_SECURE_FILE = 1 << 20
"""Bytes of a secure file that can be handed over: it is sealed in one piece."""

MAX_EVIDENCE = 2 << 20
_SEAL_OVERHEAD = 4096
_MAX_REQUEST = 2 * MAX_EVIDENCE + 4096
_MAX_ANSWER = 2 * (MAX_SECURE_FILE + _SEAL_OVERHEAD + MAX_EVIDENCE) + 8192
MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader agrees on (RFC 8785, 3.2.2.3)."""

_REQUEST_TAG = "handover-request"
_ANSWER_TAG = "handover-answer"
_SEAL_LABEL = b"dstack-handover-seal-v2:"


class Address(SizedBytes):
    """The 20 bytes of a contract's address."""

    SIZE = 20


@dataclass(frozen=True, slots=True)
class Law:
    """Which contract on which chain decides."""

    chain_id: int
    contract: Address


@dataclass(frozen=True, slots=True)
class Request:
    """What a new node asks: seal the secure file of `app_id` to `public_key`.

    Attributes:
        public_key: X25519, made for this request alone.
        nonce: 32 random bytes; two requests are never the same.
        expires_at: Unix seconds after which nobody may answer it.
    """

    public_key: Digest32
    nonce: Digest32
    app_id: AppId
    law: Law
    expires_at: int

    def members(self) -> dict[str, Any]:
        """The JSON object that the new node's quote binds."""
        return {
            "version": VERSION,
            "role": "new-node",
            "public_key": self.public_key.hex(),
            "nonce": self.nonce.hex(),
            "app_id": self.app_id.hex(),
            "chain_id": self.law.chain_id,
            "contract": self.law.contract.hex(),
            "expires_at": self.expires_at,
        }

    def hash(self) -> Digest32:
        """SHA-256 of the canonical form: the name of this request."""
        return _digest(self.members())

    def report_data(self) -> ReportData:
        """What the new node's quote must carry."""
        return report_data(_REQUEST_TAG, rfc8785.dumps(self.members()))


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a handover, as its evidence showed it."""

    compose_hash: ComposeHash
    instance_id: InstanceId | None
    os_image_hash: OsImageHash

    def members(self) -> dict[str, Any]:
        """The JSON object; an app without instance ids has an empty one."""
        return {
            "compose_hash": self.compose_hash.hex(),
            "instance_id": self.instance_id.hex() if self.instance_id else "",
            "os_image_hash": self.os_image_hash.hex(),
        }


@dataclass(frozen=True, slots=True)
class Terms:
    """Under what a secure file was sealed: all of a receipt but the sealed bytes.

    Attributes:
        block_number: Of the block in whose state the old node was told that the new node is allowed.
        at: Unix seconds of the old node's clock.
        simulated_root: The new node's quote ended at a root that is not Intel's.
    """

    request_hash: Digest32
    app_id: AppId
    law: Law
    block_number: int
    block_hash: Digest32
    at: int
    sender: Party
    receiver: Party
    simulated_root: bool

    def members(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "version": VERSION,
            "request_hash": self.request_hash.hex(),
            "app_id": self.app_id.hex(),
            "chain_id": self.law.chain_id,
            "contract": self.law.contract.hex(),
            "block_number": self.block_number,
            "block_hash": self.block_hash.hex(),
            "at": self.at,
            "sender": self.sender.members(),
            "receiver": self.receiver.members(),
            "simulated_root": self.simulated_root,
        }

    def seal_info(self) -> bytes:
        """The HPKE info: a box opens only under exactly these terms."""
        return bytes(_digest(self.members(), label=_SEAL_LABEL))


@dataclass(frozen=True, slots=True)
class Receipt:
    """That a secure file was sealed under `terms`; kept by both sides."""

    terms: Terms
    sealed_sha256: Digest32

    def members(self) -> dict[str, Any]:
        """The JSON object that the old node's quote binds."""
        return {**self.terms.members(), "sealed_sha256": self.sealed_sha256.hex()}

    def report_data(self) -> ReportData:
        """What the old node's quote must carry."""
        return report_data(_ANSWER_TAG, _digest(self.members()))


@dataclass(frozen=True, slots=True)
class QuotedRequest:
    """A request with the new node's evidence blob, as it travels."""

    request: Request
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The sealed secure file, the receipt, and the old node's evidence blob, as they travel."""

    sealed: bytes
    receipt: Receipt
    evidence: bytes


def serialise_request(quoted: QuotedRequest) -> str:
    """Write a request document."""
    return _compact({**quoted.request.members(), "evidence": quoted.evidence.hex()})


def parse_request(raw: bytes) -> QuotedRequest:
    """Read a request document; says nothing of who made it.

    Raises:
        MessageMalformedError: It is not exactly of the form that `serialise_request` writes.
    """
    members = _members(raw, what="request", limit=_MAX_REQUEST)
    if members.text("role") != "new-node":
        raise MessageMalformedError(f"request: role: want 'new-node', got {members.text('role')[:40]!r}")
    request = Request(
        public_key=members.sized("public_key", Digest32),
        nonce=members.sized("nonce", Digest32),
        app_id=members.sized("app_id", AppId),
        law=_law(members),
        expires_at=members.integer("expires_at", maximum=MAX_INTEGER),
    )
    members.refuse_others(frozenset({*request.members(), "evidence"}))
    return QuotedRequest(request, _bounded(members, "evidence", MAX_EVIDENCE))


def serialise_receipt(receipt: Receipt) -> str:
    """Write a receipt."""
    return _compact(receipt.members())


def serialise_answer(answer: Answer) -> str:
    """Write an answer document."""
    return _compact(
        {
            "version": VERSION,
            "request_hash": answer.receipt.terms.request_hash.hex(),
            "sealed": answer.sealed.hex(),
            "receipt": answer.receipt.members(),
            "evidence": answer.evidence.hex(),
        }
    )


def parse_answer(raw: bytes) -> Answer:
    """Read an answer document; says nothing of who made it, nor that its parts belong together.

    Raises:
        MessageMalformedError: It is not exactly of the form that `serialise_answer` writes.
    """
    members = _members(raw, what="answer", limit=_MAX_ANSWER)
    members.refuse_others(frozenset({"version", "request_hash", "sealed", "receipt", "evidence"}))
    receipt = _receipt(_object(members, "receipt"))
    if members.sized("request_hash", Digest32) != receipt.terms.request_hash:
        raise MessageMalformedError("answer: request_hash: want the receipt's, got another")
    return Answer(
        sealed=_bounded(members, "sealed", MAX_SECURE_FILE + _SEAL_OVERHEAD),
        receipt=receipt,
        evidence=_bounded(members, "evidence", MAX_EVIDENCE),
    )


def _receipt(members: Members) -> Receipt:
    _require_version(members)
    terms = Terms(
        request_hash=members.sized("request_hash", Digest32),
        app_id=members.sized("app_id", AppId),
        law=_law(members),
        block_number=members.integer("block_number", maximum=MAX_INTEGER),
        block_hash=members.sized("block_hash", Digest32),
        at=members.integer("at", maximum=MAX_INTEGER),
        sender=_party(_object(members, "sender")),
        receiver=_party(_object(members, "receiver")),
        simulated_root=members.flag("simulated_root"),
    )
    members.refuse_others(frozenset({*terms.members(), "sealed_sha256"}))
    return Receipt(terms, members.sized("sealed_sha256", Digest32))


def _party(members: Members) -> Party:
    party = Party(
        compose_hash=members.sized("compose_hash", ComposeHash),
        instance_id=members.sized("instance_id", InstanceId) if members.text("instance_id") else None,
        os_image_hash=members.sized("os_image_hash", OsImageHash),
    )
    members.refuse_others(frozenset(party.members()))
    return party


def _law(members: Members) -> Law:
    return Law(members.integer("chain_id", maximum=MAX_INTEGER), members.sized("contract", Address))


def _members(raw: bytes, *, what: str, limit: int) -> Members:
    value = parse_json(raw, what=what, limit=limit, error=MessageMalformedError)
    members = Members.of(value, what=what, error=MessageMalformedError)
    _require_version(members)
    return members


def _object(members: Members, name: str) -> Members:
    what = f"{members.what}: {name}"
    return Members.of(members.values.get(name), what=what, error=MessageMalformedError)


def _require_version(members: Members) -> None:
    version = members.integer("version", maximum=MAX_INTEGER)
    if version != VERSION:
        raise MessageMalformedError(f"{members.what}: version: want {VERSION}, got {version}")


def _bounded(members: Members, name: str, limit: int) -> bytes:
    raw = members.hexadecimal(name)
    if not 0 < len(raw) <= limit:
        raise MessageMalformedError(f"{members.what}: {name}: want 1 to {limit} bytes, got {len(raw)}")
    return raw


def _digest(members: dict[str, Any], *, label: bytes = b"") -> Digest32:
    return Digest32(hashlib.sha256(label + rfc8785.dumps(members)).digest())


def _compact(members: dict[str, Any]) -> str:
    return json.dumps(members, separators=(",", ":"))
