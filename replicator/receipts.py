"""The receipts of all handovers that a node took part in, and of its genesis: one JSON file each. No secrets."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstack.errors import ConfigError, KeystoreError
from dstack.transport.private_file import replace_private
from dstack.values import Digest32
from replicator.custody import Genesis, Receipt
from replicator.documents import QuotedRequest

MAX_RECEIPTS = 10_000
MOST_RECEIPTS = 50_000
"""What the limit may be set to: whoever asks for a page has all of them looked at."""

PAGE = 16
PAGE_BYTES = 4 << 20

_WITHOUT_EVIDENCE = ("role", "hash", "receipt", "simulated_root")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeptReceipt:
    """A receipt with the evidence that binds it; all that an auditor needs besides collateral.

    Attributes:
        role: `sent`, `received` or `genesis`: what this node did.
        subject: The receipt; for the first node, the genesis.
        quoted: The request with the new node's evidence; None for a genesis.
        evidence: The old node's evidence blob; for a genesis, the maker's.
        simulated: Of `evidence`: its quote ends at a root that is not Intel's.
        sealed_key: Sealed to the new node, so no secret; empty for a genesis.
    """

    role: str
    subject: Receipt | Genesis
    evidence: bytes
    simulated: bool
    quoted: QuotedRequest | None = None
    sealed_key: bytes = b""

    @property
    def name(self) -> str:
        """Of its file."""
        return receipt_name(self.subject.hash(), self.role)

    def members(self) -> dict[str, Any]:
        """The JSON object."""
        members: dict[str, Any] = {
            "role": self.role,
            "hash": self.subject.hash().hex(),
            "receipt": self.subject.members(),
            "evidence": self.evidence.hex(),
            "simulated_root": self.simulated,
        }
        if self.quoted is not None:
            members |= {"request": self.quoted.members(), "sealed_key": self.sealed_key.hex()}
        return members


@dataclass(frozen=True, slots=True)
class ReceiptFolder:
    """Where they are kept.

    Attributes:
        limit: With so many in it nothing more is handed on. None is ever deleted: a person moves them away.
    """

    path: Path
    limit: int = MAX_RECEIPTS

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"receipts: cannot make {self.path}: {exc.strerror}") from exc
        self._warn(self.count())

    def keep(self, kept: KeptReceipt) -> None:
        """Store one.

        Raises:
            KeystoreError: It could not be written, or there are `limit`.
        """
        count = self.count()
        if count >= self.limit:
            raise KeystoreError(f"receipts: want at most {self.limit}, got as many; move some away")
        self.write(kept.name, kept.members())
        self._warn(count + 1)

    def write(self, name: str, members: dict[str, Any]) -> None:
        """Store one that was made before; the same once more is no error.

        Raises:
            KeystoreError: It could not be written.
        """
        try:
            replace_private(self.path / name, json.dumps(members, indent=2).encode() + b"\n")
        except OSError as exc:
            raise KeystoreError(f"receipts: {name} cannot be written: {exc.strerror}") from exc

    def read(self, receipt: Digest32, role: str) -> dict[str, Any]:
        """One of them, as JSON.

        Raises:
            KeystoreError: It is not there, or damaged.
        """
        return self._read(self.path / receipt_name(receipt, role))

    def count(self) -> int:
        """How many are kept."""
        return sum(1 for _ in self.path.glob("*.json"))

    def page(self, since: int, *, with_evidence: bool) -> dict[str, Any]:
        """Some of them from position *since* on, oldest first, and where the next page begins (null: no more).

        At most `PAGE`, and no more than the first that would make a page of over `PAGE_BYTES`.

        Raises:
            KeystoreError: One of them cannot be read, or is damaged.
        """
        kept_files = self._oldest_first()
        found: list[dict[str, Any]] = []
        size = 0
        for path, bytes_of_file in kept_files[since : since + PAGE]:
            size += bytes_of_file
            if found and size > PAGE_BYTES:
                break
            kept = self._read(path)
            found.append(kept if with_evidence else {name: kept[name] for name in _WITHOUT_EVIDENCE})
        end = since + len(found)
        return {"receipts": found, "next": end if end < len(kept_files) else None}

    def _oldest_first(self) -> list[tuple[Path, int]]:
        """Each file and its size; without those that somebody moves away meanwhile."""
        found = []
        for path in self.path.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, path.name, path, status.st_size))
        return [(path, size) for _, _, path, size in sorted(found)]

    def _warn(self, count: int) -> None:
        """From half of the limit on, so that there are days to act in: strangers can have handovers repeated."""
        if 2 * count >= self.limit:
            _log.warning("receipts: %d are kept; with %d nothing more is handed on: move some away", count, self.limit)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            members = json.loads(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise KeystoreError(f"receipts: {path.name} cannot be read") from exc
        if not isinstance(members, dict) or not members.keys() >= set(_WITHOUT_EVIDENCE):
            raise KeystoreError(f"receipts: {path.name}: want a receipt, got something else")
        return members


def receipt_name(receipt: Digest32, role: str) -> str:
    """Of the file of a receipt."""
    return f"{receipt.hex()}.{role}.json"
