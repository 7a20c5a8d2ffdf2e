"""Who has had a secure file: its genesis, and a receipt for each handover since. Pure.

The receipts form a chain: each names the *head* before it, the first one's being the hash of the genesis. So whoever
knows a head knows the whole past, and a node can tell whether what it is offered descends from what it holds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from dstack.attestation.report_data import report_data
from dstack.errors import HandoverRefusedError, MessageMalformedError
from dstack.keys.sealing_stream import StreamShape
from dstack.measurement.strict_json import Members
from dstack.values import AppId, Digest32, ReportData
from replicator.documents import (
    MAX_INTEGER,
    VERSION,
    Law,
    Party,
    Request,
    digest,
    document,
    inner,
    read_law,
    read_party,
    read_request,
    require_version,
)

MAX_LINKS = 64
MAX_CUSTODY = 512 << 10

_RECEIPT_TAG = "handover-receipt"
_GENESIS_TAG = "handover-genesis"
_SEAL_LABEL = b"dstack-handover-seal-v2:"
_HEAD_LABEL = b"dstack-handover-custody-v2:"
_FINGERPRINT_LABEL = b"dstack-handover-fingerprint-v2:"


def content_digest(content: bytes) -> bytes:
    """BLAKE3 of content, 32 bytes: of all digests the one that keeps up with the cipher and the disk."""
    return blake3(content).digest()


def fingerprint_of(digest: bytes) -> Digest32:
    """The public name of content whose `content_digest` is known; says nothing of that, from which keys are derived."""
    return Digest32(hashlib.sha256(_FINGERPRINT_LABEL + digest).digest())


@dataclass(frozen=True, slots=True)
class Genesis:
    """That a machine made a secure file, which nobody had before.

    Attributes:
        nonce: 32 random bytes; two geneses are never the same.
        at: Unix seconds.
        maker: The machine.
    """

    app_id: AppId
    law: Law
    fingerprint: Digest32
    size: int
    nonce: Digest32
    at: int
    maker: Party

    def members(self) -> dict[str, Any]:
        """The JSON object that the maker's quote binds."""
        return {
            "version": VERSION,
            "role": "genesis",
            "app_id": self.app_id.hex(),
            **self.law.members(),
            "fingerprint": self.fingerprint.hex(),
            "size": self.size,
            "nonce": self.nonce.hex(),
            "at": self.at,
            "maker": self.maker.members(),
        }

    def hash(self) -> Digest32:
        """SHA-256 of the canonical form: the name of this secure file for all time."""
        return digest(self.members())

    def report_data(self) -> ReportData:
        """What the maker's quote must carry."""
        return report_data(_GENESIS_TAG, self.hash())


@dataclass(frozen=True, slots=True)
class Terms:
    """Under what a secure file was sealed: all of a receipt but the sealed key.

    Attributes:
        request: What it answers: key, nonce, app, law and expiry.
        transcript: SHA-256 over the request and the evidence that came with it.
        block_number: Of the block in whose state the new node is allowed.
        at: Unix seconds.
        simulated_root: The new node's quote ended at a root that is not Intel's.
        fingerprint: Of the content.
        size: Of the content, in bytes.
        genesis: Hash of the genesis.
        custody: The head of the chain before this handover.
        depth: How many handovers there were before.
    """

    request: Request
    transcript: Digest32
    block_number: int
    block_hash: Digest32
    at: int
    sender: Party
    receiver: Party
    simulated_root: bool
    fingerprint: Digest32
    size: int
    genesis: Digest32
    custody: Digest32
    depth: int

    def members(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "version": VERSION,
            "role": "old-node",
            "request": self.request.members(),
            "transcript": self.transcript.hex(),
            "block_number": self.block_number,
            "block_hash": self.block_hash.hex(),
            "at": self.at,
            "sender": self.sender.members(),
            "receiver": self.receiver.members(),
            "simulated_root": self.simulated_root,
            "fingerprint": self.fingerprint.hex(),
            "size": self.size,
            "genesis": self.genesis.hex(),
            "custody": self.custody.hex(),
            "depth": self.depth,
        }

    def seal_info(self) -> bytes:
        """What the key and each chunk are bound to: they open under exactly these terms."""
        return bytes(digest(self.members(), label=_SEAL_LABEL))


@dataclass(frozen=True, slots=True)
class Receipt:
    """That a secure file was sealed under `terms`, with the key in the sealed box of this digest."""

    terms: Terms
    sealed_key_sha256: Digest32

    def members(self) -> dict[str, Any]:
        """The JSON object that the old node's quote binds."""
        return {**self.terms.members(), "sealed_key_sha256": self.sealed_key_sha256.hex()}

    def hash(self) -> Digest32:
        """SHA-256 of the canonical form: the name of this handover."""
        return digest(self.members())

    def report_data(self) -> ReportData:
        """What the old node's quote must carry."""
        return report_data(_RECEIPT_TAG, self.hash())

    def head(self) -> Digest32:
        """The head of the chain after this handover."""
        return Digest32(hashlib.sha256(_HEAD_LABEL + self.terms.custody + self.hash()).digest())


@dataclass(frozen=True, slots=True)
class Custody:
    """A genesis and the last `MAX_LINKS` receipts since, oldest first."""

    genesis: Genesis
    links: tuple[Receipt, ...] = ()

    @property
    def head(self) -> Digest32:
        """Stands for the whole past."""
        return self.links[-1].head() if self.links else self.genesis.hash()

    @property
    def depth(self) -> int:
        """How many handovers there were."""
        return self.links[-1].terms.depth + 1 if self.links else 0

    def after(self, receipt: Receipt) -> Custody:
        """The chain with one more handover."""
        return Custody(self.genesis, (*self.links, receipt)[-MAX_LINKS:])

    def members(self) -> dict[str, Any]:
        """The JSON object."""
        return {"genesis": self.genesis.members(), "links": [link.members() for link in self.links]}

    def require_before(self, terms: Terms) -> None:
        """See that *terms* continue this chain.

        Raises:
            HandoverRefusedError: They name another genesis, one of another app, another head or another depth.
        """
        for name, want, got in (
            ("genesis", self.genesis.hash().hex(), terms.genesis.hex()),
            ("app", self.genesis.app_id.hex(), terms.request.app_id.hex()),
            ("custody", self.head.hex(), terms.custody.hex()),
            ("depth", str(self.depth), str(terms.depth)),
        ):
            if want != got:
                raise HandoverRefusedError(f"receipt: {name}: want {want}, got {got}")

    def require_descends(self, held: Custody, fingerprint: Digest32) -> None:
        """See that what comes with this chain may take the place of what is held.

        It may where the chain goes through the very content that is held: then nothing is lost that the others do not
        know.

        Args:
            held: The chain of what is held.
            fingerprint: Of the content that is held, as it is now.

        Raises:
            HandoverRefusedError: It is another secure file, an older one, or the one that is held was changed since.
        """
        if held.genesis != self.genesis:
            raise HandoverRefusedError(
                f"answer: want genesis {held.genesis.hash().hex()}, got {self.genesis.hash().hex()}: "
                f"this would be a second secret"
            )
        later = [link for link in self.links if link.terms.depth >= held.depth]
        if not later or later[0].terms.custody != held.head:
            raise HandoverRefusedError("answer: it does not descend from the secure file that is held here")
        if fingerprint not in {link.terms.fingerprint for link in later}:
            raise HandoverRefusedError("answer: the secure file that is held here was changed since it was handed on")


def parse_receipt(raw: bytes) -> Receipt:
    """Read a receipt; says nothing of who made it.

    Raises:
        MessageMalformedError: It is not of its form.
    """
    return read_receipt(document(raw, what="receipt", limit=MAX_CUSTODY))


def read_receipt(members: Members) -> Receipt:
    """As `parse_receipt`, from a JSON object."""
    require_version(members, role="old-node")
    asked = inner(members, "request")
    request = read_request(asked)
    asked.refuse_others(frozenset(request.members()))
    terms = Terms(
        request=request,
        transcript=members.sized("transcript", Digest32),
        block_number=members.integer("block_number", maximum=MAX_INTEGER),
        block_hash=members.sized("block_hash", Digest32),
        at=members.integer("at", maximum=MAX_INTEGER),
        sender=read_party(inner(members, "sender")),
        receiver=read_party(inner(members, "receiver")),
        simulated_root=members.flag("simulated_root"),
        fingerprint=members.sized("fingerprint", Digest32),
        size=StreamShape(members.integer("size", maximum=MAX_INTEGER)).size,
        genesis=members.sized("genesis", Digest32),
        custody=members.sized("custody", Digest32),
        depth=members.integer("depth", maximum=MAX_INTEGER),
    )
    members.refuse_others(frozenset({*terms.members(), "sealed_key_sha256"}))
    return Receipt(terms, members.sized("sealed_key_sha256", Digest32))


def read_genesis(members: Members) -> Genesis:
    """Read a genesis.

    Raises:
        MessageMalformedError: It is not of its form.
    """
    require_version(members, role="genesis")
    genesis = Genesis(
        app_id=members.sized("app_id", AppId),
        law=read_law(members),
        fingerprint=members.sized("fingerprint", Digest32),
        size=StreamShape(members.integer("size", maximum=MAX_INTEGER)).size,
        nonce=members.sized("nonce", Digest32),
        at=members.integer("at", maximum=MAX_INTEGER),
        maker=read_party(inner(members, "maker")),
    )
    members.refuse_others(frozenset(genesis.members()))
    return genesis


def read_custody(members: Members) -> Custody:
    """Read a chain and see that its links follow each other.

    Raises:
        MessageMalformedError: It is not of its form, or a link does not continue the one before.
    """
    members.refuse_others(frozenset({"genesis", "links"}))
    links = members.values.get("links")
    if not isinstance(links, list) or len(links) > MAX_LINKS:
        raise MessageMalformedError(f"{members.what}: links: want an array of at most {MAX_LINKS}")
    what = f"{members.what}: link"
    custody = Custody(
        read_genesis(inner(members, "genesis")),
        tuple(read_receipt(Members.of(link, what=what, error=MessageMalformedError)) for link in links),
    )
    _require_chain(custody, members.what)
    return custody


def _require_chain(custody: Custody, what: str) -> None:
    if not custody.links:
        return
    first = custody.links[0].terms
    if (first.depth == 0) != (first.custody == custody.genesis.hash()):
        raise MessageMalformedError(f"{what}: the first link does not continue the genesis")
    if first.depth and len(custody.links) < MAX_LINKS:
        raise MessageMalformedError(
            f"{what}: want the last {MAX_LINKS} links, or all since the genesis, got {len(custody.links)}"
        )
    for before, link in zip(custody.links, custody.links[1:], strict=False):
        if (link.terms.custody, link.terms.depth) != (before.head(), before.terms.depth + 1):
            raise MessageMalformedError(f"{what}: link {link.terms.depth} does not continue the one before")
    if {link.terms.genesis for link in custody.links} != {custody.genesis.hash()}:
        raise MessageMalformedError(f"{what}: a link is of another genesis")
    if {link.terms.request.app_id for link in custody.links} != {custody.genesis.app_id}:
        raise MessageMalformedError(f"{what}: a link is of another app")
