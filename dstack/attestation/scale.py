"""The subset of the SCALE codec that evidence uses: compact lengths, bytes and strings before their content."""

from __future__ import annotations

from dstack.attestation.cursor import Cursor
from dstack.errors import EvidenceMalformedError

_TWO_BYTES, _FOUR_BYTES, _TOO_LONG = 1 << 6, 1 << 14, 1 << 30


def read_length(cursor: Cursor, what: str) -> int:
    """A compact length, in its shortest form, not beyond what is left.

    Raises:
        EvidenceMalformedError: It is not in its shortest form, 2^30 or more, or more than is left.
    """
    first = cursor.uint(1, what)
    mode = first & 0b11
    if mode == 0b11:
        raise EvidenceMalformedError(f"{what}: want a length below 2^30")
    rest = cursor.uint((1 << mode) - 1, what)
    length = (rest << 8 | first) >> 2
    if length < (0, _TWO_BYTES, _FOUR_BYTES)[mode]:
        raise EvidenceMalformedError(f"{what}: a length is not in its shortest form")
    if length > cursor.remaining:
        raise EvidenceMalformedError(f"{what}: want {length} more, {cursor.remaining} bytes are left")
    return length


def read_bytes(cursor: Cursor, what: str) -> bytes:
    """Bytes after their length."""
    return cursor.take(read_length(cursor, what), what)


def read_text(cursor: Cursor, what: str) -> str:
    """UTF-8 after its length in bytes.

    Raises:
        EvidenceMalformedError: The length is wrong, or the bytes are not UTF-8.
    """
    try:
        return read_bytes(cursor, what).decode()
    except UnicodeDecodeError as exc:
        raise EvidenceMalformedError(f"{what}: want UTF-8") from exc


def write_length(length: int) -> bytes:
    """A compact length, in its shortest form.

    Raises:
        EvidenceMalformedError: It is 2^30 or more.
    """
    if length < _TWO_BYTES:
        return (length << 2).to_bytes(1, "little")
    if length < _FOUR_BYTES:
        return (length << 2 | 1).to_bytes(2, "little")
    if length < _TOO_LONG:
        return (length << 2 | 2).to_bytes(4, "little")
    raise EvidenceMalformedError(f"length: want one below 2^30, got {length}")


def write_bytes(content: bytes) -> bytes:
    """Bytes after their length."""
    return write_length(len(content)) + content
