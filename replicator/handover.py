"""The rounds of a handover as two state machines. Pure: the time is an argument, a step returns the next state.

New node, per request:  Asked → Receiving → Stored; each ends by itself
Old node, per request:  unknown → Answered; it ends by itself

A request waits beside others and is never replaced. An answer is taken only for a request that this node made, that has
not expired and that it repeats word by word. What is delivered twice changes nothing the second time.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from dstack.errors import HandoverRefusedError
from dstack.keys.sealing_stream import StreamShape
from dstack.values import AppId, Digest32
from replicator.answers import Answer
from replicator.custody import Receipt
from replicator.documents import Law, Party, QuotedRequest, Request

REQUEST_LIFETIME = timedelta(minutes=10)
TRANSFER_LIFETIME = timedelta(hours=24)
"""How long after its request's expiry a transfer that has begun may go on."""

CLOCK_TOLERANCE = timedelta(minutes=1)
MAX_PENDING = 8
MAX_ASKED = 64
MAX_ANSWERED = 1024


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of ours: waiting, or with the receipt of the answer that is being received, or stored.

    Attributes:
        quoted: As it was published.
        private_key: Opens answers to it; empty once stored.
        receipt: Of the answer that was accepted.
        next_chunk: The first chunk that has not come.
    """

    quoted: QuotedRequest
    private_key: bytes = field(repr=False)
    receipt: Receipt | None = None
    next_chunk: int = 0
    stored: bool = False

    @property
    def request(self) -> Request:
        """What the quote binds."""
        return self.quoted.request

    @property
    def stage(self) -> str:
        """Where it stands."""
        return "stored" if self.stored else "receiving" if self.receipt else "asked"

    @property
    def chunks(self) -> int:
        """How many chunks the answer has that was accepted; 0 before."""
        return StreamShape(self.receipt.terms.size).chunks if self.receipt else 0

    @property
    def ends_at(self) -> float:
        """When it is forgotten, in Unix seconds."""
        return self.request.expires_at + (TRANSFER_LIFETIME.total_seconds() if self.receipt else 0)


@dataclass(frozen=True, slots=True)
class NewNode:
    """The requests that this node has made and not forgotten yet."""

    asked: tuple[Asked, ...] = ()

    def at(self, at: datetime) -> NewNode:
        """Forget what has ended, keys included."""
        return NewNode(tuple(each for each in self.asked if each.ends_at > at.timestamp()))

    def pending(self, at: datetime) -> tuple[Asked, ...]:
        """What waits or is being received."""
        return tuple(each for each in self.at(at).asked if not each.stored)

    def asking(self, new: Asked, at: datetime) -> NewNode:
        """Remember a request, so that its answer will be taken.

        Raises:
            HandoverRefusedError: `MAX_PENDING` requests wait already, or `MAX_ASKED` are remembered.
        """
        current = self.at(at)
        current.require_room()
        return NewNode((*current.asked, new))

    def require_room(self) -> None:
        """See that one more request may wait.

        Raises:
            HandoverRefusedError: As `asking`.
        """
        if sum(each.stage == "asked" for each in self.asked) >= MAX_PENDING or len(self.asked) >= MAX_ASKED:
            raise HandoverRefusedError(f"request: want at most {MAX_PENDING} waiting, got as many; they expire")

    def for_answer(self, answer: Answer, at: datetime) -> Asked:
        """The request of ours that *answer* is for. Says nothing of who answered.

        Raises:
            HandoverRefusedError: We made no such request or it has ended, the answer was made for other evidence, or
                the receipt is for another sealed key.
        """
        terms = answer.receipt.terms
        asked = next((each for each in self.at(at).asked if each.request == terms.request), None)
        if asked is None:
            raise HandoverRefusedError(f"answer: no request {terms.request.hash().hex()} waits here")
        if asked.quoted.transcript() != terms.transcript:
            raise HandoverRefusedError("answer: transcript: it answers the request with other evidence")
        if not hmac.compare_digest(hashlib.sha256(answer.sealed_key).digest(), answer.receipt.sealed_key_sha256):
            raise HandoverRefusedError("answer: the receipt is for another sealed key")
        return asked

    def accepting(self, receipt: Receipt) -> NewNode:
        """Take the answer with this receipt, whose sender was judged.

        The chunks that came already stay good if they are of the same content, in the same number of chunks.

        Raises:
            HandoverRefusedError: Meanwhile another answer was stored, or the request has ended.
        """
        asked = self.of(receipt)
        if asked.stored and asked.receipt != receipt:
            raise HandoverRefusedError("answer: another answer to this request was stored already")
        before, terms = asked.receipt, receipt.terms
        same = before is not None and (before.terms.fingerprint, before.terms.size) == (terms.fingerprint, terms.size)
        return self._with(asked.request, receipt=receipt, next_chunk=asked.next_chunk if same else 0)

    def received(self, receipt: Receipt, next_chunk: int) -> NewNode:
        """Chunks up to this one have come and were opened."""
        return self._with(self.of(receipt).request, next_chunk=next_chunk)

    def failing(self, receipt: Receipt) -> NewNode:
        """What came is not what the receipt names: wait for another answer, unless the request has ended meanwhile."""
        return self._with(receipt.terms.request, receipt=None, next_chunk=0)

    def storing(self, receipt: Receipt) -> NewNode:
        """All is on the disk; forget the key. The request may have ended meanwhile, and is forgotten then."""
        return self._with(receipt.terms.request, private_key=b"", receipt=receipt, stored=True)

    def of(self, receipt: Receipt) -> Asked:
        """The request that *receipt*, which was accepted, is for.

        Raises:
            HandoverRefusedError: It has ended meanwhile.
        """
        for each in self.asked:
            if each.request == receipt.terms.request:
                return each
        raise HandoverRefusedError(f"answer: no request {receipt.terms.request.hash().hex()} waits here")

    def _with(self, request: Request, **changes: Any) -> NewNode:
        return NewNode(tuple(replace(each, **changes) if each.request == request else each for each in self.asked))


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered, and the receipt of that."""

    quoted_hash: Digest32
    receipt: Receipt

    @property
    def ends_at(self) -> float:
        """When it is forgotten, in Unix seconds; the request has expired long before."""
        return self.receipt.terms.request.expires_at + TRANSFER_LIFETIME.total_seconds()


@dataclass(frozen=True, slots=True)
class OldNode:
    """The requests that this node has answered and not forgotten yet."""

    answered: tuple[Answered, ...] = ()

    def at(self, at: datetime) -> OldNode:
        """Forget what has ended."""
        return OldNode(tuple(each for each in self.answered if each.ends_at > at.timestamp()))

    def answer_to(self, quoted: QuotedRequest, at: datetime) -> Receipt | None:
        """The receipt of the answer that this very request got before; None if it got none."""
        name = quoted.transcript()
        return next((each.receipt for each in self.at(at).answered if each.quoted_hash == name), None)

    def admit(self, quoted: QuotedRequest, *, law: Law, app_id: AppId, at: datetime) -> None:
        """See that a request may be answered at all. Says nothing of who made it.

        Args:
            quoted: As it came.
            law: The chain and contracts that this node asks.
            app_id: The app that this node belongs to.
            at: Now.

        Raises:
            HandoverRefusedError: Another chain, contract or app; expired; valid for too long; answered with other
                evidence before; or `MAX_ANSWERED` answered requests have not expired yet.
        """
        request = quoted.request
        _require_same_place(request.law, law)
        if request.app_id != app_id:
            raise HandoverRefusedError(f"request: want app {app_id.hex()}, got {request.app_id.hex()}")
        if request.expires_at <= at.timestamp():
            raise HandoverRefusedError(f"request: expired at {request.expires_at}, now is {int(at.timestamp())}")
        latest = (at + REQUEST_LIFETIME + CLOCK_TOLERANCE).timestamp()
        if request.expires_at > latest:
            raise HandoverRefusedError(f"request: want it to expire by {int(latest)}, got {request.expires_at}")
        name = quoted.transcript()
        if any(each.receipt.terms.request == request and each.quoted_hash != name for each in self.at(at).answered):
            raise HandoverRefusedError(f"request: {request.hash().hex()} was answered before, with other evidence")
        if len(self._unexpired(at)) >= MAX_ANSWERED:
            raise HandoverRefusedError(f"request: want at most {MAX_ANSWERED} answered, got as many; they expire")

    def answering(self, quoted: QuotedRequest, receipt: Receipt, *, law: Law, app_id: AppId, at: datetime) -> OldNode:
        """Admit a request and remember its answer, before that leaves.

        Where `MAX_ANSWERED` are remembered, the oldest that has expired is forgotten: its transfer can no longer be
        gone on with.

        Raises:
            HandoverRefusedError: As `admit`.
        """
        current = self.at(at)
        current.admit(quoted, law=law, app_id=app_id, at=at)
        kept, excess = current.answered, len(current.answered) + 1 - MAX_ANSWERED
        if excess > 0:
            expired = [each for each in kept if each.receipt.terms.request.expires_at <= at.timestamp()]
            forgotten = expired[:excess]
            kept = tuple(each for each in kept if each not in forgotten)
        return OldNode((*kept, Answered(quoted.transcript(), receipt)))

    def _unexpired(self, at: datetime) -> tuple[Answered, ...]:
        return tuple(each for each in self.answered if each.receipt.terms.request.expires_at > at.timestamp())


def require_parties(receipt: Receipt, *, sender: Party, receiver: Party) -> None:
    """See that a receipt names the two sides as their evidence shows them.

    Raises:
        HandoverRefusedError: It names another sender or another receiver.
    """
    terms = receipt.terms
    for role, named, seen in (("sender", terms.sender, sender), ("receiver", terms.receiver, receiver)):
        # The two sides may have other collateral, and so another opinion of one platform's TCB.
        if replace(named, tcb_status=seen.tcb_status) != seen:
            raise HandoverRefusedError(f"receipt: {role}: want {seen.members()}, got {named.members()}")


def _require_same_place(got: Law, want: Law) -> None:
    if got.chain_id != want.chain_id:
        raise HandoverRefusedError(f"request: want chain {want.chain_id}, got {got.chain_id}")
    for name, asked, ours in (
        ("operator", got.operator, want.operator),
        ("contract", got.contract, want.contract),
    ):
        if asked != ours:
            raise HandoverRefusedError(f"request: want {name} 0x{ours.hex()}, got 0x{asked.hex()}")
