"""What both sides of a handover work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replicator.identity import Identity
from replicator.moments import Moments
from replicator.peers import EvidenceVerifier
from replicator.receipts import ReceiptFolder
from replicator.storage import SecureFile


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one node.

    Attributes:
        identity: Who it is.
        verifier: What it was told to trust.
        secure_file: The payload.
        receipts: Where receipts are kept.
        moments: The time.
        random: So many bytes nobody can predict.
    """

    identity: Identity
    verifier: EvidenceVerifier
    secure_file: SecureFile
    receipts: ReceiptFolder
    moments: Moments
    random: Callable[[int], bytes]
