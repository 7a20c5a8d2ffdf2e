"""The answer of an old node: one line of JSON, before the sealed chunks. Pure: text to values and back.

What is sent is this line, a line feed, and then the sealed chunks one after the other (`dstack.keys.sealing_stream`);
their lengths follow from the size in the receipt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dstack.errors import MessageMalformedError
from dstack.keys.sealing import KEY_SIZE, TAG_SIZE
from replicator.custody import MAX_CUSTODY, Custody, Receipt, read_custody, read_receipt
from replicator.documents import MAX_EVIDENCE, bounded, compact, document, inner, require_version

MAX_ANSWER = 2 * MAX_EVIDENCE + MAX_CUSTODY
_SEALED_KEY = KEY_SIZE + KEY_SIZE + TAG_SIZE


@dataclass(frozen=True, slots=True)
class Answer:
    """The sealed stream key, the receipt, the chain of custody before it, and the old node's evidence blob."""

    sealed_key: bytes
    receipt: Receipt
    custody: Custody
    evidence: bytes

    def members(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "version": 2,
            "role": "answer",
            "sealed_key": self.sealed_key.hex(),
            "receipt": self.receipt.members(),
            "custody": self.custody.members(),
            "evidence": self.evidence.hex(),
        }


def serialise_answer(answer: Answer) -> str:
    """Write the line."""
    return compact(answer.members())


def parse_answer(raw: bytes) -> Answer:
    """Read the line; says nothing of who made it, nor that its parts belong together.

    Raises:
        MessageMalformedError: It is not exactly of the form that `serialise_answer` writes.
    """
    members = document(raw, what="answer", limit=MAX_ANSWER)
    require_version(members, role="answer")
    members.refuse_others(frozenset({"version", "role", "sealed_key", "receipt", "custody", "evidence"}))
    sealed_key = bounded(members, "sealed_key", _SEALED_KEY)
    if len(sealed_key) != _SEALED_KEY:
        raise MessageMalformedError(f"answer: sealed_key: want {_SEALED_KEY} bytes, got {len(sealed_key)}")
    return Answer(
        sealed_key=sealed_key,
        receipt=read_receipt(inner(members, "receipt")),
        custody=read_custody(inner(members, "custody")),
        evidence=bounded(members, "evidence", MAX_EVIDENCE),
    )
