"""The request of a handover, version 2, and what all documents are made of. Pure: JSON text to values and back.

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
from dstack.policy import BootInfo
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash, ReportData, SizedBytes

VERSION = 2
MAX_EVIDENCE = 2 << 20
MAX_REQUEST = 2 * MAX_EVIDENCE + 4096
MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader agrees on (RFC 8785, 3.2.2.3)."""

_MAX_STATUS = 40
_REQUEST_TAG = "handover-request"
_TRANSCRIPT_LABEL = b"dstack-handover-transcript-v2:"


class Address(SizedBytes):
    """The 20 bytes of a contract's address."""

    SIZE = 20


@dataclass(frozen=True, slots=True)
class Law:
    """Which contracts on which chain decide: the UpgradeOperator, and the KmsAuth that it owns."""

    chain_id: int
    operator: Address
    contract: Address

    def members(self) -> dict[str, Any]:
        """The JSON members."""
        return {"chain_id": self.chain_id, "operator": self.operator.hex(), "contract": self.contract.hex()}


@dataclass(frozen=True, slots=True)
class Request:
    """What a new node asks: seal the secure file of `app_id` to `public_key`.

    Attributes:
        public_key: X25519, made for this request alone.
        nonce: 32 random bytes; two requests are never the same.
        expires_at: Unix seconds after which nobody may begin to answer it.
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
            **self.law.members(),
            "expires_at": self.expires_at,
        }

    def hash(self) -> Digest32:
        """SHA-256 of the canonical form: the name of this request."""
        return digest(self.members())

    def report_data(self) -> ReportData:
        """What the new node's quote must carry."""
        return report_data(_REQUEST_TAG, rfc8785.dumps(self.members()))


@dataclass(frozen=True, slots=True)
class QuotedRequest:
    """A request with the new node's evidence blob, as it travels."""

    request: Request
    evidence: bytes

    def transcript(self) -> Digest32:
        """SHA-256 over the request and the evidence that came with it: all that was said before the answer."""
        said = bytes(self.request.hash()) + hashlib.sha256(self.evidence).digest()
        return Digest32(hashlib.sha256(_TRANSCRIPT_LABEL + said).digest())

    def members(self) -> dict[str, Any]:
        """The JSON object."""
        return {**self.request.members(), "evidence": self.evidence.hex()}


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a handover, as its evidence showed it."""

    compose_hash: ComposeHash
    instance_id: InstanceId | None
    os_image_hash: OsImageHash
    device_id: DeviceId
    tcb_status: str

    @classmethod
    def of(cls, boot: BootInfo) -> Party:
        """How a document names a node."""
        return cls(boot.compose_hash, boot.instance_id, boot.os_image_hash, boot.device_id, boot.tcb_status)

    def members(self) -> dict[str, Any]:
        """The JSON object; an app without instance ids has an empty one."""
        return {
            "compose_hash": self.compose_hash.hex(),
            "instance_id": self.instance_id.hex() if self.instance_id else "",
            "os_image_hash": self.os_image_hash.hex(),
            "device_id": self.device_id.hex(),
            "tcb_status": self.tcb_status,
        }


def serialise_request(quoted: QuotedRequest) -> str:
    """Write a request document."""
    return compact(quoted.members())


def parse_request(raw: bytes) -> QuotedRequest:
    """Read a request document; says nothing of who made it.

    Raises:
        MessageMalformedError: It is not exactly of the form that `serialise_request` writes.
    """
    return read_quoted_request(document(raw, what="request", limit=MAX_REQUEST))


def read_quoted_request(members: Members) -> QuotedRequest:
    """As `parse_request`, from a JSON object."""
    request = read_request(members)
    members.refuse_others(frozenset({*request.members(), "evidence"}))
    return QuotedRequest(request, bounded(members, "evidence", MAX_EVIDENCE))


def read_request(members: Members) -> Request:
    """Read what a quote binds; whoever calls refuses other members."""
    require_version(members, role="new-node")
    return Request(
        public_key=members.sized("public_key", Digest32),
        nonce=members.sized("nonce", Digest32),
        app_id=members.sized("app_id", AppId),
        law=read_law(members),
        expires_at=members.integer("expires_at", maximum=MAX_INTEGER),
    )


def read_law(members: Members) -> Law:
    """Read which contracts on which chain."""
    return Law(
        members.integer("chain_id", maximum=MAX_INTEGER),
        members.sized("operator", Address),
        members.sized("contract", Address),
    )


def read_party(members: Members) -> Party:
    """Read one side.

    Raises:
        MessageMalformedError: A member is missing, unknown or of another form.
    """
    party = Party(
        compose_hash=members.sized("compose_hash", ComposeHash),
        instance_id=members.sized("instance_id", InstanceId) if members.text("instance_id") else None,
        os_image_hash=members.sized("os_image_hash", OsImageHash),
        device_id=members.sized("device_id", DeviceId),
        tcb_status=members.text("tcb_status"),
    )
    if not party.tcb_status.isalpha() or len(party.tcb_status) > _MAX_STATUS:
        raise MessageMalformedError(f"{members.what}: tcb_status: want a word of at most {_MAX_STATUS} letters")
    members.refuse_others(frozenset(party.members()))
    return party


def document(raw: bytes, *, what: str, limit: int) -> Members:
    """The JSON object that *raw* is.

    Raises:
        MessageMalformedError: It is none, or has more than *limit* bytes.
    """
    value = parse_json(raw, what=what, limit=limit, error=MessageMalformedError)
    return Members.of(value, what=what, error=MessageMalformedError)


def inner(members: Members, name: str) -> Members:
    """The JSON object in a member.

    Raises:
        MessageMalformedError: There is none.
    """
    what = f"{members.what}: {name}"
    return Members.of(members.values.get(name), what=what, error=MessageMalformedError)


def require_version(members: Members, *, role: str) -> None:
    """Refuse another version, and a document that belongs to another side.

    Raises:
        MessageMalformedError: It is one of those.
    """
    version = members.integer("version", maximum=MAX_INTEGER)
    if version != VERSION:
        raise MessageMalformedError(f"{members.what}: version: want {VERSION}, got {version}")
    if members.text("role") != role:
        raise MessageMalformedError(f"{members.what}: role: want {role!r}, got {members.text('role')[:40]!r}")


def bounded(members: Members, name: str, limit: int) -> bytes:
    """Bytes in hexadecimal, 1 to *limit* of them.

    Raises:
        MessageMalformedError: There are more or none, or it is not hexadecimal.
    """
    raw = members.hexadecimal(name)
    if not 0 < len(raw) <= limit:
        raise MessageMalformedError(f"{members.what}: {name}: want 1 to {limit} bytes, got {len(raw)}")
    return raw


def digest(members: dict[str, Any], *, label: bytes = b"") -> Digest32:
    """SHA-256 of the canonical form."""
    return Digest32(hashlib.sha256(label + rfc8785.dumps(members)).digest())


def compact(members: dict[str, Any]) -> str:
    """JSON on one line."""
    return json.dumps(members, separators=(",", ":"))
