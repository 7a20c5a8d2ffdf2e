"""The old node: judges who asks, seals the secure file, and keeps the receipt before anything leaves."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from dstack.errors import HandoverRefusedError, KeystoreError, ServiceBusyError
from dstack.keys.sealing import KEY_SIZE, TAG_SIZE, seal
from dstack.keys.sealing_stream import CHUNK, StreamCipher, StreamShape
from dstack.values import Digest32
from replicator.answers import Answer, serialise_answer
from replicator.custody import Receipt, Terms
from replicator.documents import Party, QuotedRequest, parse_request
from replicator.handover import OldNode
from replicator.law import Judged, LawReader, require_genesis
from replicator.parts import Parts
from replicator.peers import boot_info_of
from replicator.receipts import KeptReceipt
from replicator.storage import Held, SecureFile, aligned_buffer

MAX_AT_ONCE = 4
MAX_WAITING = 8
"""Callers that wait to be judged: each holds a thread, and the other paths need some, too."""

ASK_AGAIN_SECONDS = 15.0
"""How long a stream may go on until the chain is asked once more: owners who deny a node may do so meanwhile."""

_WAIT_SECONDS = 10.0


class Sending:
    """An answer on its way: a line, then sealed chunks.

    Args:
        answer: What was answered.
        key: Of the stream.
        secure_file: The content.
        require_still_granted: Asks the chain once more whether the new node may have it.
    """

    def __init__(
        self, answer: Answer, key: bytes, secure_file: SecureFile, require_still_granted: Callable[[], None]
    ) -> None:
        self.receipt = answer.receipt
        self.line = serialise_answer(answer)
        self.shape = StreamShape(answer.receipt.terms.size)
        self._cipher = StreamCipher(key, self.shape, answer.receipt.terms.seal_info())
        self._file = secure_file
        self._require_still_granted = require_still_granted

    def chunks(self, first: int) -> Iterator[memoryview]:
        """Sealed chunks from number *first* on, read one by one; each is good until the next is asked for.

        A chunk has one nonce and may leave more than once, where a transfer is gone on with: so no other content than
        that of the receipt is ever sealed.

        Raises:
            KeystoreError: The secure file has changed since the answer was made.
            DstackError: The chain no longer allows the new node, or could not be asked again.
        """
        asked = time.monotonic()
        # The same memory again and again: having new memory for each chunk costs more than sealing it.
        content_buffer, sealed_buffer = aligned_buffer(CHUNK), memoryview(bytearray(CHUNK + TAG_SIZE))
        with self._file.reading_of(self.receipt.terms.fingerprint) as read_into:
            for number in range(first, self.shape.chunks):
                if time.monotonic() - asked >= ASK_AGAIN_SECONDS:
                    self._require_still_granted()
                    asked = time.monotonic()
                content = content_buffer[: self.shape.length(number)]
                sealed = sealed_buffer[: self.shape.sealed_length(number)]
                read_into(content, number * CHUNK)
                self._cipher.seal_into(number, content, sealed)
                yield sealed


class Sender:
    """Answers requests. May be used from several threads."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._old = OldNode()
        self._keys: dict[Digest32, bytes] = {}
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE + MAX_WAITING)
        self._slots = threading.BoundedSemaphore(MAX_AT_ONCE)

    def answered(self, at: datetime) -> int:
        """How many answered requests are remembered."""
        return len(self._old.at(at).answered)

    def judge(self, raw: bytes, law: LawReader) -> Judged:
        """Whether a request would be answered; changes nothing.

        Raises:
            DstackError: As `onboard`.
        """
        quoted = parse_request(raw)
        with self._slot():
            known = self._old.answer_to(quoted, self._parts.moments.now())
            judged, _ = self._judged(quoted, law, known=known)
            held = self._held(judged.genesis, law)
            if known is not None:
                _require_unchanged(known, held)
            return judged

    def onboard(self, raw: bytes, law: LawReader) -> Sending:
        """Round 2: seal the secure file for a request, if everything about it holds.

        The same request gets the same answer again, if everything still holds.

        Args:
            raw: The request document.
            law: The contracts to ask.

        Raises:
            InputError: The request or its evidence is malformed.
            RefusedError: It may not be answered; the error says why, for the chain's refusal also the rule.
            UnavailableError: The guest agent, the chain or the collateral could not be reached, or too many ask.
        """
        quoted = parse_request(raw)
        with self._slot():
            known = self._old.answer_to(quoted, self._parts.moments.now())
            judged, at = self._judged(quoted, law, known=known)
            held = self._held(judged.genesis, law)
            answer, key = self._again(known, held) if known is not None else self._answer(quoted, judged, held, at)
        return Sending(answer, key, self._parts.secure_file, lambda: judged.require_still_granted(law))

    def _judged(self, quoted: QuotedRequest, law: LawReader, *, known: Receipt | None) -> tuple[Judged, datetime]:
        request, at = quoted.request, self._parts.moments.now(law.block())
        app_id = self._parts.identity.app_id
        if known is None:
            self._old.admit(quoted, law=law.law, app_id=app_id, at=at)
        receiver = self._parts.verifier.appraise_blob(quoted.evidence, expected=request.report_data(), at=at)
        boot = boot_info_of(receiver, app_id, who="new node")
        return Judged.by(law, boot, receiver, who="new node"), at

    def _held(self, recorded: Digest32 | None, law: LawReader) -> Held:
        held = self._parts.secure_file.held()
        if held.custody is None:
            raise KeystoreError("secure file: want one with a custody record, got none: bootstrap --adopt makes one")
        require_genesis(held.custody.genesis.hash(), recorded, required=law.requires_genesis, who="old node")
        return held

    def _answer(self, quoted: QuotedRequest, judged: Judged, held: Held, at: datetime) -> tuple[Answer, bytes]:
        assert held.custody is not None
        terms = Terms(
            request=quoted.request,
            transcript=quoted.transcript(),
            block_number=judged.block.number,
            block_hash=judged.block.hash,
            at=int(at.timestamp()),
            sender=Party.of(self._parts.identity.boot()),
            receiver=Party.of(judged.boot),
            simulated_root=judged.simulated,
            fingerprint=held.fingerprint,
            size=held.size,
            genesis=held.custody.genesis.hash(),
            custody=held.custody.head,
            depth=held.custody.depth,
        )
        key = self._parts.random(KEY_SIZE)
        sealed_key = seal(quoted.request.public_key, key, terms.seal_info())
        receipt = Receipt(terms, Digest32(hashlib.sha256(sealed_key).digest()))
        answer = Answer(sealed_key, receipt, held.custody, self._parts.identity.quoted(receipt.report_data()))
        known = self._remember(quoted, answer, key, at)
        return (answer, key) if known is None else self._again(known, held)

    def _remember(self, quoted: QuotedRequest, answer: Answer, key: bytes, at: datetime) -> Receipt | None:
        """Keep the receipt, then the state: nothing is handed over without one.

        Gives the receipt of another answer, where the same request came on two connections and got that one first.
        """
        request, receipt = quoted.request, answer.receipt
        with self._lock:
            if known := self._old.answer_to(quoted, at):
                return known
            later = self._old.answering(quoted, receipt, law=request.law, app_id=request.app_id, at=at)
            self._parts.receipts.keep(
                KeptReceipt("sent", receipt, answer.evidence, self._parts.identity.simulated, quoted, answer.sealed_key)
            )
            self._keys[receipt.hash()] = key
            self._remember_only(later)
        return None

    def forget_ended(self, at: datetime) -> None:
        """Forget the answers that have ended, and the keys of their streams; a stream under way has its own."""
        with self._lock:
            self._remember_only(self._old.at(at))

    def _remember_only(self, old: OldNode) -> None:
        remembered = {each.receipt.hash() for each in old.answered}
        self._old = old
        self._keys = {name: key for name, key in self._keys.items() if name in remembered}

    def _again(self, known: Receipt, held: Held) -> tuple[Answer, bytes]:
        _require_unchanged(known, held)
        assert held.custody is not None
        with self._lock:
            key = self._keys.get(known.hash())
        if key is None:
            raise HandoverRefusedError("request: its answer has ended meanwhile; want a new request")
        kept = self._parts.receipts.read(known.hash(), "sent")
        evidence, sealed_key = bytes.fromhex(kept["evidence"]), bytes.fromhex(kept["sealed_key"])
        return Answer(sealed_key, known, held.custody, evidence), key

    @contextmanager
    def _slot(self) -> Iterator[None]:
        with _taken(self._places, 0.0), _taken(self._slots, _WAIT_SECONDS):
            yield


@contextmanager
def _taken(places: threading.Semaphore, seconds: float) -> Iterator[None]:
    if not places.acquire(timeout=seconds):
        raise ServiceBusyError(f"request: want at most {MAX_AT_ONCE} judged at once, got more; try again")
    try:
        yield
    finally:
        places.release()


def _require_unchanged(known: Receipt, held: Held) -> None:
    if held.fingerprint != known.terms.fingerprint:
        raise HandoverRefusedError("request: the secure file has changed since it was answered; want a new request")
