"""A replicator: the two sides of a handover, joined with the machine, the chain and the disk.

One node plays both roles: it is a *new node* where it asks, and an *old node* where it is asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from dstack.errors import HandoverRefusedError, KeystoreError
from replicator import old_forms
from replicator.config import ChainSettings
from replicator.containers import Container, derive_key
from replicator.custody import Custody, Receipt
from replicator.documents import VERSION, QuotedRequest
from replicator.identity import Identity
from replicator.law import Judged, LawReader
from replicator.moments import Moments
from replicator.parts import Parts
from replicator.peers import EvidenceVerifier, QuoteProvider
from replicator.receipts import ReceiptFolder
from replicator.receiving import Delivery, Receiver
from replicator.refusals import Refusals
from replicator.sending import Sender, Sending
from replicator.storage import SecureFile

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a node acts through.

    Attributes:
        quotes: Has this machine quoted.
        verifier: What this node was told to trust.
        connect: Makes the reader of a chain at its endpoints.
        secure_file: The payload.
        receipts: Where receipts are kept.
        clock: Now, aware.
        random: So many bytes nobody can predict.
    """

    quotes: QuoteProvider
    verifier: EvidenceVerifier
    connect: Callable[[ChainSettings], LawReader]
    secure_file: SecureFile
    receipts: ReceiptFolder
    clock: Callable[[], datetime]
    random: Callable[[int], bytes]


class Replicator:
    """A node. Its methods may be called from several threads."""

    def __init__(
        self,
        around: Surroundings,
        chain: ChainSettings,
        *,
        containers: Sequence[Container] = (),
        old_forms: bool = False,
    ) -> None:
        self.around = around
        self.moments = Moments(around.clock, chain.max_age)
        self.refusals = Refusals()
        self.containers = tuple(containers)
        self.old_forms = old_forms
        self._settings = chain
        self._configuring = threading.Lock()
        self._law = around.connect(chain) if chain.rpc_urls else None
        identity = Identity(around.quotes, around.verifier, now=self._now, random=around.random)
        self.parts = Parts(identity, around.verifier, around.secure_file, around.receipts, self.moments, around.random)
        self._receiver = Receiver(self.parts)
        self._sender = Sender(self.parts)
        self._announce()

    @property
    def identity(self) -> Identity:
        """Who this node is."""
        return self.parts.identity

    @property
    def law(self) -> LawReader:
        """The contracts that this node asks.

        Raises:
            HandoverRefusedError: No endpoints are known yet.
        """
        if self._law is None:
            raise HandoverRefusedError(
                "no chain endpoint is configured: want rpc_urls in the settings or by /configure"
            )
        return self._law

    def configure(self, rpc_urls: tuple[str, ...]) -> None:
        """Take the chain's endpoints, once. The law is the settings file's.

        Raises:
            HandoverRefusedError: The settings do not leave the endpoints open, or others were taken before.
            ConfigError: They do not lead to the contracts of the settings.
            ChainUnavailableError: They do not answer.
        """
        with self._configuring:
            if rpc_urls == self._settings.rpc_urls:
                return
            if not self._settings.endpoints_from_configure:
                raise HandoverRefusedError("configure: the endpoints are set in the settings file")
            if self._settings.rpc_urls:
                raise HandoverRefusedError("configure: the endpoints were set already")
            settings = self._settings.at(rpc_urls)
            self._law = self.around.connect(settings)
            self._settings = settings

    def request_key(self) -> QuotedRequest:
        """Round 1, new node."""
        quoted = self._receiver.request_key(self.law)
        _log.info("request %s made", quoted.request.hash().hex())
        return quoted

    def judge(self, raw: bytes) -> Judged:
        """Whether this old node would answer a request."""
        return self._sender.judge(raw, self.law)

    def onboard(self, raw: bytes) -> Sending:
        """Round 2, old node."""
        sending = self._sender.onboard(raw, self.law)
        _log_receipt("sealed", sending.receipt)
        return sending

    def receive(self, line: bytes) -> Delivery:
        """Round 3, new node: what is returned takes the chunks."""
        return self._receiver.begin(line, self.law)

    def finish(self, delivery: Delivery) -> Receipt:
        """The end of round 3: have what came take its place."""
        receipt = delivery.finish(self.law)
        _log_receipt("received", receipt)
        return receipt

    def forget_ended(self) -> None:
        """Forget the secrets of requests and answers that have ended, and what came for them.

        Raises:
            OSError: The disk refuses to let a file go; the next time tries again.
        """
        at = self.moments.now()
        self._sender.forget_ended(at)
        self._receiver.forget_ended(at)

    def derive_key(self, container: Container, tag: str) -> bytes:
        """A key of a container's own."""
        return derive_key(self.around.secure_file, container, tag)

    def status(self) -> dict[str, Any]:
        """What anybody may know of this node: JSON, no secrets, bounded."""
        at = self.moments.now()
        return {
            "version": VERSION,
            "law": self._settings.law.members(),
            "endpoints": len(self._settings.rpc_urls),
            "block_tag": self._settings.block_tag,
            "holds": self._held_members(),
            "pending": [
                {
                    "request": each.request.hash().hex(),
                    "stage": each.stage,
                    "expires_at": int(each.ends_at),
                    "next_chunk": each.next_chunk,
                    "chunks": each.chunks,
                }
                for each in self._receiver.pending(at)
            ],
            "answered_requests": self._sender.answered(at),
            "receipts": self.around.receipts.count(),
            "max_receipts": self.around.receipts.limit,
            "refusals": [asdict(refusal) for refusal in self.refusals.last()],
            "simulated_root": self.around.verifier.trusts_simulated_root,
            "old_forms": self.old_forms,
            "insecure_endpoints_from_configure": self._settings.endpoints_from_configure,
        }

    def old_status(self) -> dict[str, str]:
        """What the original service says besides."""
        waiting = self._receiver.pending(self.moments.now())
        return old_forms.old_status(waiting[-1].quoted if waiting else None, self._genesis_evidence())

    def _genesis_evidence(self) -> bytes | None:
        """Where this node made the secure file."""
        try:
            custody = self.around.secure_file.held().custody if self.around.secure_file.exists() else None
            kept = self.around.receipts.read(custody.genesis.hash(), "genesis") if custody else None
        except KeystoreError:
            return None
        return bytes.fromhex(kept["evidence"]) if kept else None

    def _now(self) -> datetime:
        return self.moments.now(self._law.block() if self._law else None)

    def _held_members(self) -> dict[str, Any] | None:
        if not self.around.secure_file.exists():
            return None
        try:
            held = self.around.secure_file.held()
        except KeystoreError as exc:
            return {"error": str(exc)}
        return {
            "fingerprint": held.fingerprint.hex(),
            "size": held.size,
            "since": held.since,
            "custody": _custody_members(held.custody),
        }

    def _announce(self) -> None:
        if self.around.verifier.trusts_simulated_root:
            _log.warning("A SIMULATED ROOT IS TRUSTED: quotes prove nothing about real hardware")
        if self._settings.endpoints_from_configure:
            _log.warning("WHOEVER REACHES THE PORT FIRST CHOOSES THE CHAIN ENDPOINTS, and so whom this node believes")
        if self.old_forms:
            _log.warning("the forms of the original service are taken, as envelopes of version 2")
        if self._settings.block_tag == "latest":
            _log.warning("decisions rest on the latest block, which a reorganisation can remove")


def _custody_members(custody: Custody | None) -> dict[str, Any] | None:
    """The chain of custody, shortened to what people compare."""
    if custody is None:
        return None
    return {
        "genesis": custody.genesis.hash().hex(),
        "made_at": custody.genesis.at,
        "depth": custody.depth,
        "head": custody.head.hex(),
        "links": [
            {
                "receipt": link.hash().hex(),
                "at": link.terms.at,
                "block": link.terms.block_number,
                "from": link.terms.sender.compose_hash.hex(),
                "to": link.terms.receiver.compose_hash.hex(),
                "fingerprint": link.terms.fingerprint.hex(),
            }
            for link in custody.links
        ],
    }


def _log_receipt(what: str, receipt: Receipt) -> None:
    terms = receipt.terms
    _log.info(
        "secure file of app %s %s: receipt %s, compose hash %s to %s, block %d, simulated root: %s",
        terms.request.app_id.hex(),
        what,
        receipt.hash().hex(),
        terms.sender.compose_hash.hex(),
        terms.receiver.compose_hash.hex(),
        terms.block_number,
        terms.simulated_root,
    )
