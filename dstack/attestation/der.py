"""The subset of DER that the SGX extension of a PCK certificate needs (X.690, section 8)."""

from __future__ import annotations

from collections.abc import Iterator

from dstack.attestation.cursor import Cursor
from dstack.errors import CollateralMalformedError

BOOLEAN, INTEGER, OCTET_STRING, OBJECT_ID, ENUMERATED, SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30


def elements(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Walk the (tag, content) pairs that make up *raw*, to its last byte.

    Raises:
        CollateralMalformedError: An element is cut short or has a length that DER does not allow.
    """
    cursor = Cursor(raw, CollateralMalformedError)
    while cursor.remaining:
        tag = cursor.uint(1, "DER tag")
        yield tag, cursor.take(_length(cursor), "DER content")


def sequence(raw: bytes) -> tuple[tuple[int, bytes], ...]:
    """The elements of the one SEQUENCE that *raw* is.

    Raises:
        CollateralMalformedError: *raw* is anything else.
    """
    outer = tuple(elements(raw))
    if len(outer) != 1 or outer[0][0] != SEQUENCE:
        raise CollateralMalformedError("DER: want one SEQUENCE")
    return tuple(elements(outer[0][1]))


def object_id(content: bytes) -> str:
    """Dotted form of an OBJECT IDENTIFIER's content.

    Raises:
        CollateralMalformedError: The content ends inside an arc, or is empty.
    """
    if not content or content[-1] & 0x80:
        raise CollateralMalformedError("DER: an object identifier is cut short")
    arcs, arc = [], 0
    for byte in content:
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(str(n) for n in (first, arcs[0] - 40 * first, *arcs[1:]))


def _length(cursor: Cursor) -> int:
    first = cursor.uint(1, "DER length")
    if first < 0x80:
        return first
    size = first & 0x7F
    if size not in (1, 2):
        raise CollateralMalformedError(f"DER: want a length of at most 2 bytes, got one of {size}")
    length = int.from_bytes(cursor.take(size, "DER length"), "big")
    if length < (0x80 if size == 1 else 0x100):
        raise CollateralMalformedError("DER: a length is not in its shortest form")
    return length
