"""Verifying a log: every entry signed by a key that one root vouches for, none missing, none changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dstack.errors import DecisionLogBrokenError, KeyMalformedError, SignatureUntrustedError
from kms.decision_log.entry import NO_ENTRY, Entry
from kms.decision_log.signing import root_behind, signer_of
from kms.decision_log.store import PRUNED, Head


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """What was established.

    Attributes:
        count: How many entries there are.
        first: Number of the oldest.
        head: The newest.
        root: The k256 public key that vouches for all of it, 33 bytes; empty for an empty log.
        missing: How many decisions were made while they could not be written.
    """

    count: int
    first: int
    head: Head
    root: bytes
    missing: int


def verify_log(
    entries: Iterable[Entry], vouchers: Mapping[bytes, bytes], head: Head, *, root: bytes | None = None
) -> VerifiedLog:
    """Establish that a log is whole since its oldest entry.

    Says nothing of entries that were removed at its new end together with an older head put back: compare the head
    with one that was noted elsewhere, such as the KMS's own output.

    Args:
        entries: All of them, oldest first.
        vouchers: The root's signature for each key that signs entries.
        head: The newest entry, as the log remembers it.
        root: The k256 public key of the KMS, 33 bytes; None takes whichever root vouches, which must be one.

    Raises:
        DecisionLogBrokenError: An entry is missing, changed, or not signed by this KMS.
    """
    pruned: dict[int, str] = {}
    first = last = None
    count = missing = 0
    for entry in entries:
        if last is not None and (entry.seq != last.seq + 1 or entry.previous != last.digest):
            raise DecisionLogBrokenError(
                f"entry {entry.seq}: does not follow entry {last.seq}: one is missing or changed"
            )
        root = _require_signed(entry, vouchers, root)
        members = entry.members()
        if members.get("decision") == PRUNED:
            pruned[members["until"]] = members["digest"]
        missing += members.get("missing_before", 0)
        first, last, count = first or entry, entry, count + 1
    if first is not None and first.previous != NO_ENTRY and pruned.get(first.seq - 1) != first.previous.hex():
        raise DecisionLogBrokenError(
            f"entry {first.seq} is the oldest, and no entry says that those before were removed"
        )
    newest = Head(0, NO_ENTRY) if last is None else Head(last.seq, last.digest)
    if newest != head:
        raise DecisionLogBrokenError(
            f"entry {newest.seq} is the newest, the log remembers entry {head.seq}: entries are missing"
        )
    return VerifiedLog(count, first.seq if first else 0, head, root or b"", missing)


def _require_signed(entry: Entry, vouchers: Mapping[bytes, bytes], root: bytes | None) -> bytes:
    """The root behind the entry's signature."""
    try:
        signer = signer_of(entry.digest, entry.signature)
        behind = root_behind(signer, vouchers[signer])
    except (KeyError, KeyMalformedError, SignatureUntrustedError) as exc:
        raise DecisionLogBrokenError(f"entry {entry.seq}: not signed by a key that a root vouches for") from exc
    if root is not None and behind != root:
        raise DecisionLogBrokenError(f"entry {entry.seq}: want root {root.hex()}, got {behind.hex()}")
    return behind
