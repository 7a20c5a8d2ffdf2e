"""Measurement registers: what a list of digests folds into (measurement.md 1)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from hashlib import sha384

from dstack.errors import EventLogMalformedError
from dstack.values import Register

ZERO_REGISTER = Register(bytes(Register.SIZE))


def extend(register: Register, digest: bytes) -> Register:
    """Fold one digest into a register: SHA-384 of both.

    Args:
        register: The value before.
        digest: At most 48 bytes; a shorter one is padded with zeros on the right, as the TDX module's callers do.

    Raises:
        EventLogMalformedError: *digest* is longer.
    """
    if len(digest) > Register.SIZE:
        raise EventLogMalformedError(f"event digest: want at most {Register.SIZE} bytes, got {len(digest)}")
    return Register(sha384(register + digest.ljust(Register.SIZE, b"\0")).digest())


def replay(digests: Iterable[bytes]) -> Register:
    """Fold *digests*, in order, into a register that starts as 48 zero bytes."""
    return reduce(extend, digests, ZERO_REGISTER)
