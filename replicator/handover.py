"""The rounds of a handover as two state machines. Pure: the clock is an argument, a step returns the next state.

New node, per request:  (made) → Pending → Received, or → Expired
Old node, per request:  Unknown → Answered → forgotten once it has expired

A request is answered at most once by one old node, an answer is taken at most once, and only for a request that this
node made, that has not expired and that is about the same app, chain and contract.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from dstack.errors import HandoverRefusedError
from dstack.values import AppId, Digest32
from replicator.documents import Answer, Law, Party, Receipt, Request, Terms

REQUEST_LIFETIME = timedelta(minutes=10)
CLOCK_TOLERANCE = timedelta(minutes=1)
MAX_PENDING = 8
MAX_ANSWERED = 1024


@dataclass(frozen=True, slots=True)
class Pending:
    """A request of ours that waits for its answer, with the key that opens it."""

    request: Request
    private_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewNode:
    """The requests that this node has made and nobody has answered yet."""

    pending: tuple[Pending, ...] = ()

    def at(self, at: datetime) -> NewNode:
        """Forget what has expired, keys included."""
        return NewNode(tuple(each for each in self.pending if not _expired(each.request, at)))

    def asked(self, pending: Pending, at: datetime) -> NewNode:
        """Remember a request, so that its answer will be taken.

        Raises:
            HandoverRefusedError: `MAX_PENDING` requests wait already.
        """
        current = self.at(at).pending
        if len(current) >= MAX_PENDING:
            raise HandoverRefusedError(f"request: want at most {MAX_PENDING} waiting, got as many; they expire")
        return NewNode((*current, pending))

    def pending_for(self, answer: Answer, at: datetime) -> Pending:
        """The request of ours that *answer* is for. Says nothing of who answered.

        Raises:
            HandoverRefusedError: We made no such request, it was answered or has expired, or the answer is not about
                its app, chain and contract.
            HandoverRefusedError: The receipt is for other sealed bytes.
        """
        terms = answer.receipt.terms
        pending = next((each for each in self.at(at).pending if each.request.hash() == terms.request_hash), None)
        if pending is None:
            raise HandoverRefusedError(f"answer: no request {terms.request_hash.hex()} waits here")
        _require_same_place(terms.law, pending.request.law, what="answer")
        _require_same_app(terms.app_id, pending.request.app_id, what="answer")
        if not hmac.compare_digest(hashlib.sha256(answer.sealed).digest(), answer.receipt.sealed_sha256):
            raise HandoverRefusedError("answer: the receipt is for other sealed bytes")
        return pending

    def received(self, request_hash: Digest32) -> NewNode:
        """Forget a request whose answer was stored; the same answer is not taken again."""
        return NewNode(tuple(each for each in self.pending if each.request.hash() != request_hash))


@dataclass(frozen=True, slots=True)
class OldNode:
    """The requests that this node has answered and that have not expired."""

    answered: tuple[Request, ...] = ()

    def at(self, at: datetime) -> OldNode:
        """Forget what has expired: such a request is refused for its age alone."""
        return OldNode(tuple(each for each in self.answered if not _expired(each, at, CLOCK_TOLERANCE)))

    def admit(self, request: Request, *, law: Law, app_id: AppId, at: datetime) -> None:
        """See that *request* may be answered at all. Says nothing of who made it.

        Args:
            request: As it came.
            law: The chain and contract that this node asks.
            app_id: The app that this node belongs to.
            at: Now.

        Raises:
            HandoverRefusedError: Another chain, contract or app; expired; valid for too long; or answered before.
        """
        _require_same_place(request.law, law, what="request")
        _require_same_app(request.app_id, app_id, what="request")
        if _expired(request, at):
            raise HandoverRefusedError(f"request: expired at {request.expires_at}, now is {int(at.timestamp())}")
        latest = (at + REQUEST_LIFETIME + CLOCK_TOLERANCE).timestamp()
        if request.expires_at > latest:
            raise HandoverRefusedError(f"request: want it to expire by {int(latest)}, got {request.expires_at}")
        if request in self.answered:
            raise HandoverRefusedError(f"request: {request.hash().hex()} was answered before")

    def answering(self, request: Request, *, law: Law, app_id: AppId, at: datetime) -> OldNode:
        """Admit *request* and mark it answered, before anything is sealed for it.

        Raises:
            HandoverRefusedError: As `admit`; or `MAX_ANSWERED` answered requests have not expired yet.
        """
        current = self.at(at)
        current.admit(request, law=law, app_id=app_id, at=at)
        if len(current.answered) >= MAX_ANSWERED:
            raise HandoverRefusedError(f"request: want at most {MAX_ANSWERED} answered, got as many; they expire")
        return replace(current, answered=(*current.answered, request))


def require_parties(receipt: Receipt, *, sender: Party, receiver: Party) -> None:
    """See that a receipt names the two sides as their evidence shows them.

    Raises:
        HandoverRefusedError: It names another sender or another receiver.
    """
    terms: Terms = receipt.terms
    for role, named, seen in (("sender", terms.sender, sender), ("receiver", terms.receiver, receiver)):
        if named != seen:
            raise HandoverRefusedError(f"receipt: {role}: want {seen.members()}, got {named.members()}")


def _expired(request: Request, at: datetime, tolerance: timedelta = timedelta()) -> bool:
    return request.expires_at <= (at - tolerance).timestamp()


def _require_same_place(got: Law, want: Law, *, what: str) -> None:
    if got.chain_id != want.chain_id:
        raise HandoverRefusedError(f"{what}: want chain {want.chain_id}, got {got.chain_id}")
    if got.contract != want.contract:
        raise HandoverRefusedError(f"{what}: want contract 0x{want.contract.hex()}, got 0x{got.contract.hex()}")


def _require_same_app(got: AppId, want: AppId, *, what: str) -> None:
    if got != want:
        raise HandoverRefusedError(f"{what}: want app {want.hex()}, got {got.hex()}")
