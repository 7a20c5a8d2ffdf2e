"""What a replicator keeps on its disk: the secure file and the receipts. Both readable by their owner only."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from pathlib import Path

from dstack.errors import ConfigError, KeystoreError
from dstack.transport.private_file import create_private, replace_private
from replicator.documents import MAX_SECURE_FILE, Receipt


@dataclass(frozen=True, slots=True)
class SecureFile:
    """The payload of the replicator, at one path; once there it is never written again."""

    path: Path

    def exists(self) -> bool:
        """Whether something is at the path, readable or not."""
        return self.path.is_symlink() or self.path.exists()

    def read(self) -> bytes:
        """The content.

        Raises:
            KeystoreError: It is not there, cannot be read, is empty, or is larger than `MAX_SECURE_FILE`.
        """
        try:
            with self.path.open("rb") as stream:
                content = stream.read(MAX_SECURE_FILE + 1)
        except OSError as exc:
            raise KeystoreError(f"secure file: cannot be read: {exc.strerror}") from exc
        if not 0 < len(content) <= MAX_SECURE_FILE:
            raise KeystoreError(f"secure file: want 1 to {MAX_SECURE_FILE} bytes, got {len(content)} or more")
        return content

    def create(self, content: bytes) -> None:
        """Write it, mode 0600, all of it or nothing; the same content once more is no error.

        Raises:
            KeystoreError: Another content is there already, *content* is empty or too large, or the disk refuses.
        """
        if not 0 < len(content) <= MAX_SECURE_FILE:
            raise KeystoreError(f"secure file: want 1 to {MAX_SECURE_FILE} bytes, got {len(content)}")
        try:
            create_private(self.path, content)
        except FileExistsError as exc:
            if not hmac.compare_digest(self.read(), content):
                raise KeystoreError("secure file: one with other content exists and stays as it is") from exc
        except OSError as exc:
            raise KeystoreError(f"secure file: cannot be written: {exc.strerror}") from exc


@dataclass(frozen=True, slots=True)
class ReceiptFolder:
    """The receipts of all handovers this node took part in, one JSON file each."""

    path: Path

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"receipts: cannot make {self.path}: {exc.strerror}") from exc

    def keep(self, receipt: Receipt, *, role: str, sender_evidence: bytes, sender_simulated: bool) -> None:
        """Store a receipt with the evidence that binds it.

        Args:
            receipt: The receipt.
            role: `sent` or `received`: what this node did.
            sender_evidence: The old node's evidence blob.
            sender_simulated: The old node's quote ended at a root that is not Intel's.

        Raises:
            KeystoreError: It could not be written.
        """
        document = {
            "role": role,
            "receipt": receipt.members(),
            "sender_evidence": sender_evidence.hex(),
            "sender_simulated_root": sender_simulated,
        }
        name = f"{receipt.terms.request_hash.hex()}.{role}.json"
        try:
            replace_private(self.path / name, json.dumps(document, indent=2).encode() + b"\n")
        except OSError as exc:
            raise KeystoreError(f"receipts: {name} cannot be written: {exc.strerror}") from exc

    def count(self) -> int:
        """How many are kept."""
        return sum(1 for _ in self.path.glob("*.json"))
