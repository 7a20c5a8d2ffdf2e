"""What a replicator does when asked: the rounds of `handover`, joined with the machine, the chain and the disk.

One node plays both roles: it is a *new node* until it holds the secure file, and an *old node* afterwards.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dstack.attestation.appraise import Appraisal
from dstack.attestation.evidence import serialise_evidence
from dstack.attestation.report_data import report_data
from dstack.errors import HandoverRefusedError
from dstack.keys.derivation import kdf
from dstack.keys.sealing import open_sealed, seal
from dstack.policy import BootInfo, boot_info
from dstack.values import AppId, Digest32
from replicator.config import ChainSettings
from replicator.documents import (
    Answer,
    Law,
    QuotedRequest,
    Receipt,
    Request,
    Terms,
    parse_answer,
    parse_request,
    serialise_answer,
    serialise_request,
)
from replicator.handover import REQUEST_LIFETIME, NewNode, OldNode, Pending, require_parties
from replicator.peers import ChainReader, EvidenceVerifier, QuoteProvider, authorize, party
from replicator.storage import ReceiptFolder, SecureFile

_SELF_TAG = "handover-self"
_GETKEY_LABEL = b"dstack-replicator-getkey-v2:"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a node acts through.

    Attributes:
        quotes: Has this machine quoted.
        verifier: What this node was told to trust.
        connect: Makes the reader of a configured chain.
        secure_file: The payload.
        receipts: Where receipts are kept.
        clock: Now, aware.
        random: So many bytes nobody can predict.
    """

    quotes: QuoteProvider
    verifier: EvidenceVerifier
    connect: Callable[[ChainSettings], ChainReader]
    secure_file: SecureFile
    receipts: ReceiptFolder
    clock: Callable[[], datetime]
    random: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Status:
    """What anybody may know of a node."""

    has_secure_file: bool
    kms_auth: str
    pending_requests: int
    answered_requests: int
    receipts: int
    simulated_root: bool


class Replicator:
    """A node. Its methods may be called from several threads."""

    def __init__(self, around: Surroundings, chain: ChainSettings | None) -> None:
        self._around = around
        self._settings = chain
        self._chain = around.connect(chain) if chain else None
        self._own: Appraisal | None = None
        self._new = NewNode()
        self._old = OldNode()
        self._new_lock = threading.Lock()
        self._old_lock = threading.Lock()
        if around.verifier.trusts_simulated_root:
            _log.warning("A SIMULATED ROOT IS TRUSTED: quotes prove nothing about real hardware")

    def status(self) -> Status:
        """What is known here, no secrets."""
        at = self._around.clock()
        return Status(
            has_secure_file=self._around.secure_file.exists(),
            kms_auth=f"0x{self._settings.kms_auth.hex()}" if self._settings else "",
            pending_requests=len(self._new.at(at).pending),
            answered_requests=len(self._old.at(at).answered),
            receipts=self._around.receipts.count(),
            simulated_root=self._around.verifier.trusts_simulated_root,
        )

    def configure(self, chain: ChainSettings) -> None:
        """Take the chain settings that the settings file left open; once, and before there is anything to protect.

        Raises:
            HandoverRefusedError: The chain is set already, or this node holds the secure file.
        """
        with self._new_lock:
            if self._settings is not None:
                raise HandoverRefusedError("configure: the chain is set already and stays as it is")
            if self._around.secure_file.exists():
                raise HandoverRefusedError("configure: a node that holds the secure file takes settings from its file")
            self._chain = self._around.connect(chain)
            self._settings = chain

    def request_key(self) -> str:
        """Round 1, new node: make a request that an old node can answer.

        Returns:
            The request document.

        Raises:
            HandoverRefusedError: No chain is configured, or too many requests wait.
            UnavailableError: The guest agent, the chain or the collateral could not be reached.
        """
        _, law = self._law()
        own, at = self._identity(), self._around.clock()
        private_key = self._around.random(32)
        request = Request(
            public_key=Digest32(X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()),
            nonce=Digest32(self._around.random(32)),
            app_id=own.app_id,
            law=law,
            expires_at=int((at + REQUEST_LIFETIME).timestamp()),
        )
        evidence = self._around.quotes.evidence(request.report_data())
        with self._new_lock:
            self._new = self._new.asked(Pending(request, private_key), at)
        _log.info("request %s made", request.hash().hex())
        return serialise_request(QuotedRequest(request, serialise_evidence(evidence)))

    def onboard(self, raw: bytes) -> str:
        """Round 2, old node: seal the secure file for a request, if everything about it holds.

        Args:
            raw: The request document.

        Returns:
            The answer document.

        Raises:
            InputError: The request or its evidence is malformed.
            RefusedError: It may not be answered; the error says why, for the chain's refusal also the rule.
            UnavailableError: The guest agent, the chain or the collateral could not be reached.
        """
        quoted = parse_request(raw)
        request, at = quoted.request, self._around.clock()
        chain, law = self._law()
        app_id = self._identity().app_id
        self._old.admit(request, law=law, app_id=app_id, at=at)

        receiver = self._around.verifier.appraise_blob(quoted.evidence, expected=request.report_data(), at=at)
        boot = _boot_info_of(receiver, app_id, who="new node")
        block = authorize(chain, boot, who="new node")

        content = self._around.secure_file.read()
        with self._old_lock:
            self._old = self._old.answering(request, law=law, app_id=app_id, at=at)
        terms = Terms(
            request_hash=request.hash(),
            app_id=app_id,
            law=law,
            block_number=block.number,
            block_hash=block.hash,
            at=int(at.timestamp()),
            sender=party(self._identity()),
            receiver=party(boot),
            simulated_root=receiver.verified.root.simulated,
        )
        return serialise_answer(self._sealed(content, request, terms))

    def receive_key(self, raw: bytes) -> Receipt:
        """Round 3, new node: store the secure file out of an answer to a request of ours.

        Args:
            raw: The answer document.

        Returns:
            The receipt, which is kept here too.

        Raises:
            InputError: The answer or its evidence is malformed.
            RefusedError: It is not for us, not from an allowed node of our app, or would overwrite a secure file.
            UnavailableError: The guest agent, the chain or the collateral could not be reached.
        """
        answer = parse_answer(raw)
        terms = answer.receipt.terms
        own = self._identity()
        with self._new_lock:
            pending = self._new.pending_for(answer, self._around.clock())
            sender = self._authorized_sender(answer, own)
            content = open_sealed(pending.private_key, answer.sealed, terms.seal_info())
            self._around.secure_file.create(content)
            self._keep(answer, role="received", sender_simulated=sender.verified.root.simulated)
            self._new = self._new.received(terms.request_hash)
        return answer.receipt

    def derive_key(self, tag: str) -> bytes:
        """A 32-byte key for *tag*, derived from the secure file; the same on every node that holds it.

        Raises:
            KeystoreError: There is no secure file here.
        """
        return kdf(self._around.secure_file.read(), [_GETKEY_LABEL, tag.encode()])

    def _sealed(self, content: bytes, request: Request, terms: Terms) -> Answer:
        """Seal, and keep the receipt before the answer leaves: nothing is handed over without one."""
        sealed = seal(request.public_key, content, terms.seal_info())
        receipt = Receipt(terms, Digest32(hashlib.sha256(sealed).digest()))
        evidence = self._around.quotes.evidence(receipt.report_data())
        answer = Answer(sealed, receipt, serialise_evidence(evidence))
        self._keep(answer, role="sent", sender_simulated=self._appraised().verified.root.simulated)
        return answer

    def _authorized_sender(self, answer: Answer, own: BootInfo) -> Appraisal:
        """Verify, appraise and authorize who answered, and see that the receipt names both sides."""
        expected, at = answer.receipt.report_data(), self._around.clock()
        sender = self._around.verifier.appraise_blob(answer.evidence, expected=expected, at=at)
        boot = _boot_info_of(sender, own.app_id, who="old node")
        require_parties(answer.receipt, sender=party(boot), receiver=party(own))
        chain, _ = self._law()
        authorize(chain, boot, who="old node")
        return sender

    def _keep(self, answer: Answer, *, role: str, sender_simulated: bool) -> None:
        self._around.receipts.keep(
            answer.receipt, role=role, sender_evidence=answer.evidence, sender_simulated=sender_simulated
        )
        terms = answer.receipt.terms
        _log.info(
            "secure file of app %s %s: request %s, compose hash %s to %s, block %d, simulated root: %s",
            terms.app_id.hex(),
            role,
            terms.request_hash.hex(),
            terms.sender.compose_hash.hex(),
            terms.receiver.compose_hash.hex(),
            terms.block_number,
            terms.simulated_root or sender_simulated,
        )

    def _law(self) -> tuple[ChainReader, Law]:
        chain, settings = self._chain, self._settings
        if chain is None or settings is None:
            raise HandoverRefusedError("no chain is configured: want it in the settings file or by /configure")
        return chain, Law(chain.chain_id, settings.kms_auth)

    def _identity(self) -> BootInfo:
        return boot_info(self._appraised())

    def _appraised(self) -> Appraisal:
        """Who this node is: its own evidence, verified and appraised like a peer's; the same until it reboots."""
        if self._own is None:
            expected = report_data(_SELF_TAG, self._around.random(32))
            evidence = self._around.quotes.evidence(expected)
            self._own = self._around.verifier.appraise(evidence, expected=expected, at=self._around.clock())
        return self._own


def _boot_info_of(appraisal: Appraisal, app_id: AppId, *, who: str) -> BootInfo:
    boot = boot_info(appraisal)
    if boot.app_id != app_id:
        raise HandoverRefusedError(f"{who}: want app {app_id.hex()}, got {boot.app_id.hex()}")
    return boot
