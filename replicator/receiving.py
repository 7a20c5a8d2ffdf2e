"""The new node: asks, judges who answers, and stores what comes."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dstack.errors import DstackError, HandoverRefusedError, KeystoreError, SealError
from dstack.keys.sealing import open_sealed
from dstack.keys.sealing_stream import CHUNK, StreamCipher, StreamShape
from dstack.values import Digest32
from replicator.answers import Answer, parse_answer
from replicator.custody import Receipt, fingerprint_of
from replicator.documents import Party, QuotedRequest, Request
from replicator.handover import REQUEST_LIFETIME, Asked, NewNode, require_parties
from replicator.law import Judged, LawReader, require_genesis
from replicator.parts import Parts
from replicator.peers import boot_info_of
from replicator.receipts import KeptReceipt
from replicator.storage import Incoming, aligned_buffer


@dataclass(slots=True)
class _Transfer:
    """An accepted answer and what has come of its content."""

    answer: Answer
    sender: Judged
    cipher: StreamCipher
    shape: StreamShape
    incoming: Incoming
    busy: bool = False


class Delivery:
    """One connection that brings chunks of a transfer; the next one goes on where this one ended."""

    def __init__(
        self, receiver: Receiver, receipt: Receipt, shape: StreamShape, next_chunk: int, transfer: _Transfer | None
    ) -> None:
        self.receipt = receipt
        self.shape = shape
        self.next_chunk = next_chunk
        self._receiver = receiver
        self._transfer = transfer

    @property
    def is_complete(self) -> bool:
        """Whether every chunk has come."""
        return self.next_chunk == self.shape.chunks

    def add(self, sealed: bytes | memoryview) -> None:
        """Open the next chunk and write it; raises as `open_into` and `write`."""
        content, offset = self._buffer[: self.shape.length(self.next_chunk)], self.next_chunk * CHUNK
        self.open_into(self.next_chunk, sealed, content)
        self.write(content, offset)
        self.written(offset + len(content))

    def open_into(self, number: int, sealed: bytes | memoryview, content: memoryview) -> None:
        """Open chunk *number* and take it into the digest; in order, and ahead of writing it.

        Raises:
            SealError: It is not of this stream, or not in its place.
        """
        self._receiver.open_into(self.receipt, number, sealed, content)

    def write(self, content: memoryview, offset: int) -> None:
        """Write chunks which were opened: whole ones, at their *offset*. Several threads may.

        Raises:
            KeystoreError: The disk refuses.
        """
        self._receiver.write(self.receipt, content, offset)

    def written(self, size: int) -> None:
        """All chunks before offset *size* are written."""
        following = -(-size // CHUNK)
        self._receiver.written(self.receipt, size, following)
        self.next_chunk = following

    def finish(self, law: LawReader) -> Receipt:
        """Have what came take its place, if the sender is still allowed.

        Raises:
            HandoverRefusedError: Chunks are missing; says which comes next.
            KeyReleaseDeniedError: The chain no longer allows the sender.
            ChainUnavailableError: Could not ask; what came stays.
            SealError: It is not the content that the receipt names.
            KeystoreError: The disk refuses.
        """
        if not self.is_complete:
            raise HandoverRefusedError(
                f"stream: want {self.shape.chunks} chunks, got {self.next_chunk}; go on with chunk {self.next_chunk}"
            )
        return self._receiver.finish(self.receipt, law)

    def close(self) -> None:
        """The connection has ended, in whichever way."""
        if self._transfer is not None:
            self._receiver.release(self._transfer)

    @cached_property
    def _buffer(self) -> memoryview:
        return aligned_buffer(CHUNK)


class Receiver:
    """Asks and receives. May be used from several threads."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._new = NewNode()
        self._transfers: dict[Request, _Transfer] = {}
        self._lock = threading.Lock()
        self._storing = threading.Lock()

    def pending(self, at: datetime) -> tuple[Asked, ...]:
        """The requests that wait or are being received."""
        return self._new.pending(at)

    def request_key(self, law: LawReader) -> QuotedRequest:
        """Round 1: a fresh key, quoted.

        Raises:
            HandoverRefusedError: Too many requests wait already.
            UnavailableError: The guest agent, the chain or the collateral could not be reached.
        """
        at = self._parts.moments.now(law.block())
        self._new.at(at).require_room()
        private_key = self._parts.random(32)
        request = Request(
            public_key=Digest32(X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()),
            nonce=Digest32(self._parts.random(32)),
            app_id=self._parts.identity.app_id,
            law=law.law,
            expires_at=int((at + REQUEST_LIFETIME).timestamp()),
        )
        quoted = QuotedRequest(request, self._parts.identity.quoted(request.report_data()))
        with self._lock:
            self._new = self._new.asking(Asked(quoted, private_key), at)
        return quoted

    def forget_ended(self, at: datetime) -> None:
        """Forget the keys of requests that have ended, and what came for them.

        What a delivery holds goes when that has let go: it may be writing the file just now.

        Raises:
            OSError: The disk refuses to let a file go; the next time tries again.
        """
        with self._lock:
            self._new = self._new.at(at)
            self._drop_ended()

    def begin(self, line: bytes, law: LawReader) -> Delivery:
        """Round 3: judge an answer; what is returned takes its chunks.

        Args:
            line: The answer, as its first line.
            law: The contracts to ask.

        Raises:
            InputError: The answer or its evidence is malformed.
            RefusedError: It is not for us, not from an allowed node of our app, or would overwrite a secure file.
            UnavailableError: The guest agent, the chain or the collateral could not be reached.
        """
        answer = parse_answer(line)
        at = self._parts.moments.now(law.block())
        asked = self._new.for_answer(answer, at)
        shape = StreamShape(answer.receipt.terms.size)
        if asked.stored:
            return self._stored(asked, answer, shape)
        if asked.receipt != answer.receipt:
            self._accept(asked, answer, self._judged(answer, law, at), shape)
        return self._deliver(answer.receipt, shape)

    def open_into(self, receipt: Receipt, number: int, sealed: bytes | memoryview, content: memoryview) -> None:
        """Open chunk *number*; only for the delivery that holds the transfer."""
        transfer = self._transfer(receipt)
        transfer.cipher.open_into(number, sealed, content)
        transfer.incoming.digest(content, number * CHUNK)

    def write(self, receipt: Receipt, content: memoryview, offset: int) -> None:
        """Write chunks; only for the delivery that holds the transfer."""
        self._transfer(receipt).incoming.write(content, offset)

    def written(self, receipt: Receipt, size: int, following: int) -> None:
        """All chunks before number *following*, *size* bytes, are written; only for the delivery that holds it."""
        self._transfer(receipt).incoming.advance(size)
        with self._lock:
            self._new = self._new.received(receipt, following)

    def finish(self, receipt: Receipt, law: LawReader) -> Receipt:
        """As `Delivery.finish`."""
        with self._lock:
            asked = self._new.of(receipt)
        if asked.stored:
            return receipt
        transfer = self._transfer(receipt)
        transfer.sender.require_still_granted(law)
        try:
            self._store(transfer, asked.quoted)
        except DstackError:
            with self._lock:
                self._new = self._new.failing(receipt)
                self._drop(receipt.terms.request)
            raise
        with self._lock:
            self._new = self._new.storing(receipt)
            self._drop(receipt.terms.request)
        return receipt

    def release(self, transfer: _Transfer) -> None:
        """Let the next delivery have the transfer; not one that took its place meanwhile."""
        with self._lock:
            transfer.busy = False
            # Where the disk refuses, `forget_ended` tries again.
            with suppress(OSError):
                self._drop_ended()

    def _judged(self, answer: Answer, law: LawReader, at: datetime) -> Judged:
        """Verify, appraise and authorize who answered, and see that the receipt says what is so."""
        receipt, own = answer.receipt, self._parts.identity.boot()
        sender = self._parts.verifier.appraise_blob(answer.evidence, expected=receipt.report_data(), at=at)
        boot = boot_info_of(sender, own.app_id, who="old node")
        require_parties(receipt, sender=Party.of(boot), receiver=Party.of(own))
        answer.custody.require_before(receipt.terms)
        judged = Judged.by(law, boot, sender, who="old node")
        require_genesis(receipt.terms.genesis, judged.genesis, required=law.requires_genesis, who="old node")
        self._require_place(answer)
        return judged

    def _require_place(self, answer: Answer) -> bool:
        """See that the content may be stored here; says whether it is here already."""
        if not self._parts.secure_file.exists():
            return False
        held, terms = self._parts.secure_file.held(), answer.receipt.terms
        if held.fingerprint == terms.fingerprint:
            if held.custody is not None and held.custody.genesis.hash() != terms.genesis:
                raise HandoverRefusedError("answer: the same content, of another genesis")
            return held.custody is not None
        if held.custody is None:
            raise KeystoreError("secure file: one with other content and no custody record exists and stays as it is")
        answer.custody.after(answer.receipt).require_descends(held.custody, held.fingerprint)
        return False

    def _accept(self, asked: Asked, answer: Answer, sender: Judged, shape: StreamShape) -> None:
        terms = answer.receipt.terms
        key = open_sealed(asked.private_key, answer.sealed_key, terms.seal_info())
        cipher = StreamCipher(key, shape, terms.seal_info())
        with self._lock:
            before = self._transfers.get(asked.request)
            if before is not None and before.busy:
                raise HandoverRefusedError("answer: another answer to this request is being received")
            self._new = self._new.accepting(answer.receipt)
            if before is not None and self._new.of(answer.receipt).next_chunk == 0:
                self._drop(asked.request)
                before = None
            incoming = before.incoming if before else self._place_for(answer.receipt)
            self._transfers[asked.request] = _Transfer(answer, sender, cipher, shape, incoming)

    def _place_for(self, receipt: Receipt) -> Incoming:
        try:
            return self._parts.secure_file.incoming(receipt.terms.request.hash().hex(), receipt.terms.size)
        except KeystoreError:
            # An answer without a place is not accepted: the same one may come again.
            self._new = self._new.failing(receipt)
            raise

    def _deliver(self, receipt: Receipt, shape: StreamShape) -> Delivery:
        with self._lock:
            transfer = self._transfer(receipt)
            if transfer.busy:
                raise HandoverRefusedError("answer: it is being received on another connection")
            transfer.busy = True
            return Delivery(self, receipt, shape, self._new.of(receipt).next_chunk, transfer)

    def _transfer(self, receipt: Receipt) -> _Transfer:
        """What has come of an accepted answer, whose request may have ended meanwhile."""
        request = receipt.terms.request
        transfer = self._transfers.get(request)
        if transfer is None or all(each.request != request for each in self._new.asked):
            raise HandoverRefusedError("stream: the request that it answers has ended; want a new one")
        return transfer

    def _stored(self, asked: Asked, answer: Answer, shape: StreamShape) -> Delivery:
        if asked.receipt != answer.receipt:
            raise HandoverRefusedError("answer: another answer to this request was stored already")
        return Delivery(self, answer.receipt, shape, shape.chunks, None)

    def _store(self, transfer: _Transfer, quoted: QuotedRequest) -> None:
        answer = transfer.answer
        if fingerprint_of(transfer.incoming.seal_off()) != answer.receipt.terms.fingerprint:
            raise SealError("stream: what came is not the content that the receipt names")
        kept = KeptReceipt(
            "received", answer.receipt, answer.evidence, transfer.sender.simulated, quoted, answer.sealed_key
        )
        with self._storing:
            if self._require_place(answer):
                self._parts.receipts.keep(kept)
                return
            custody = answer.custody.after(answer.receipt)
            at = int(self._parts.moments.now().timestamp())
            self._parts.secure_file.replace(transfer.incoming, custody, at=at, receipt=kept, to=self._parts.receipts)

    def _drop_ended(self) -> None:
        for request in self._transfers.keys() - {each.request for each in self._new.asked}:
            if not self._transfers[request].busy:
                self._drop(request)

    def _drop(self, request: Request) -> None:
        if transfer := self._transfers.get(request):
            transfer.incoming.discard()
            del self._transfers[request]
