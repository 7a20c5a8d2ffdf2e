"""One entry of the log: what is signed, and what binds it to the entry before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dstack.values import Digest32

CONTENT_LIMIT = 16 << 10
NO_ENTRY = Digest32(bytes(Digest32.SIZE))
"""Stands before the first entry."""

_TAG = b"dstack-kms-decision-v1\0"


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision as it is kept.

    Attributes:
        seq: Its number, from 1 on, without gaps.
        content: The decision in JSON: sorted members, no blanks.
        previous: The digest of the entry before.
        signature: 65 bytes by the log's key over the digest.
    """

    seq: int
    content: str
    previous: Digest32
    signature: bytes

    @property
    def digest(self) -> Digest32:
        """What is signed, and what the next entry names."""
        return entry_digest(self.seq, self.content, self.previous)

    def members(self) -> dict[str, Any]:
        """The decision."""
        members: dict[str, Any] = json.loads(self.content)
        return members


def entry_digest(seq: int, content: str, previous: Digest32) -> Digest32:
    """SHA-256 over a tag, the number (8 bytes, big-endian), the digest of the entry before, and the content."""
    return Digest32(hashlib.sha256(_TAG + seq.to_bytes(8, "big") + previous + content.encode()).digest())


def canonical(members: Mapping[str, object]) -> str:
    """The content of an entry."""
    return json.dumps(members, sort_keys=True, separators=(",", ":"))
