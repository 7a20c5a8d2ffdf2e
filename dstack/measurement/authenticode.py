"""Authenticode: the digest of a PE file without its checksum and its signatures (measurement.md 4).

Source: Microsoft's "Windows Authenticode Portable Executable Signature Format" and the PE format. UEFI firmware
measures every application it starts this way.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from dstack.errors import MeasurementMalformedError
from dstack.values import Register

# A kernel without its initrd; it is in memory twice while it is measured.
MAX_PE = 64 * 1024 * 1024
# The Windows loader's own bound.
MAX_PE_SECTIONS = 96

_COFF = struct.Struct("<4sHH12xHH")
_PE32, _PE32_PLUS = 0x10B, 0x20B
# Where the directories begin in the optional header, by its magic.
_DIRECTORIES_AT = {_PE32: 96, _PE32_PLUS: 112}
_CHECKSUM_AT = 64
_HEADERS_SIZE_AT = 60
_SECURITY = 4
_SECTION_SIZE = 40
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class PeLayout:
    """The places in a PE file that its Authenticode digest depends on; all within the file.

    Attributes:
        checksum: Where the 4-byte checksum is.
        security: Where the 8-byte directory entry of the certificate table is; None if there is none.
        headers_size: Bytes of headers that are hashed.
        sections: Start and end of each section with content, by rising start.
        certificates: Start and end of the certificate table; equal if there is none.
    """

    checksum: int
    security: int | None
    headers_size: int
    sections: tuple[tuple[int, int], ...]
    certificates: tuple[int, int]


def authenticode_sha384(image: bytes | bytearray) -> Register:
    """Digest a PE file as UEFI firmware does before it starts it.

    Raises:
        MeasurementMalformedError: See `authenticode`.
    """
    return Register(authenticode(image, "sha384"))


def authenticode(image: bytes | bytearray, algorithm: str) -> bytes:
    """Digest a PE file by any algorithm: signatures hold SHA-256.

    Bytes behind the last section that are no certificate table are refused: the format's definition and dstack's
    reference disagree whether they count.

    Args:
        image: The whole file.
        algorithm: As `hashlib` names it.

    Raises:
        MeasurementMalformedError: Not a PE file, or one whose parts contradict each other.
    """
    layout = parse_pe(image)
    view = memoryview(image)
    digest = hashlib.new(algorithm)
    for start, end in _hashed(layout, len(image)):
        digest.update(view[start:end])
    # A file is signed as if it ended on 8 bytes, which is where its certificate table then begins.
    digest.update(bytes(-len(image) % _ALIGNMENT))
    return digest.digest()


def parse_pe(image: bytes | bytearray) -> PeLayout:
    """Find what the digest depends on.

    Raises:
        MeasurementMalformedError: See `authenticode`.
    """
    if not 64 <= len(image) <= MAX_PE:
        raise _malformed(f"want 64 to {MAX_PE} bytes, got {len(image)}")
    if image[:2] != b"MZ":
        raise _malformed(f"want the signature MZ, got {bytes(image[:2]).hex()}")
    header = _uint(image, 60, 4, "offset of the PE header")
    if header + _COFF.size > len(image):
        raise _malformed(f"the PE header at {header} lies outside of {len(image)} bytes")
    signature, _, count, optional_size, _ = _COFF.unpack_from(image, header)
    if signature != b"PE\0\0":
        raise _malformed(f"want the signature PE, got {signature.hex()}")
    optional = header + _COFF.size
    magic = _uint(image, optional, 2, "optional header")
    if magic not in _DIRECTORIES_AT:
        raise _malformed(f"optional header: want the magic {_PE32:#x} or {_PE32_PLUS:#x}, got {magic:#x}")
    directories = optional + _DIRECTORIES_AT[magic]
    if optional_size < directories - optional:
        raise _malformed(f"optional header: want at least {directories - optional} bytes, got {optional_size}")
    headers_size = _uint(image, optional + _HEADERS_SIZE_AT, 4, "size of headers")
    table = optional + optional_size
    if not table + count * _SECTION_SIZE <= headers_size <= len(image):
        raise _malformed(f"size of headers: want {table + count * _SECTION_SIZE} to {len(image)}, got {headers_size}")
    security = _security_entry(image, directories, table)
    sections = _sections(image, table, count, headers_size)
    certificates = _certificates(image, security, max([headers_size, *(end for _, end in sections)]))
    return PeLayout(optional + _CHECKSUM_AT, security, headers_size, sections, certificates)


def _hashed(layout: PeLayout, size: int) -> Iterator[tuple[int, int]]:
    behind_checksum = layout.checksum + 4
    yield 0, layout.checksum
    if layout.security is None:
        yield behind_checksum, layout.headers_size
    else:
        yield behind_checksum, layout.security
        yield layout.security + 8, layout.headers_size
    yield from layout.sections
    start, end = layout.certificates
    if start != end:
        # Firmware and dstack's reference go on at as many bytes as were hashed so far, also where parts leave gaps.
        yield layout.headers_size + sum(stop - begin for begin, stop in layout.sections), size - (end - start)


def _security_entry(image: bytes | bytearray, directories: int, end: int) -> int | None:
    count = _uint(image, directories - 4, 4, "number of directories")
    if count <= _SECURITY:
        return None
    entry = directories + _SECURITY * 8
    if entry + 8 > end:
        raise _malformed(f"optional header: {count} directories do not fit it")
    return entry


def _sections(image: bytes | bytearray, table: int, count: int, headers_size: int) -> tuple[tuple[int, int], ...]:
    if count > MAX_PE_SECTIONS:
        raise _malformed(f"want at most {MAX_PE_SECTIONS} sections, got {count}")
    found = []
    for number in range(count):
        size, start = struct.unpack_from("<II", image, table + number * _SECTION_SIZE + 16)
        if size:
            found.append((start, start + size))
    found.sort()
    if found and (found[0][0] < headers_size or any(left[1] > right[0] for left, right in pairwise(found))):
        raise _malformed("sections overlap each other or the headers")
    if found and found[-1][0] >= len(image):
        raise _malformed(f"a section starts at {found[-1][0]}, behind the end at {len(image)}")
    # Only the last can reach beyond the end: they do not overlap. What is there is hashed, as firmware does.
    return tuple((start, min(end, len(image))) for start, end in found)


def _certificates(image: bytes | bytearray, security: int | None, last: int) -> tuple[int, int]:
    size = len(image)
    start, length = struct.unpack_from("<II", image, security) if security is not None else (0, 0)
    if not length:
        if last != size:
            raise _malformed(f"{size - last} bytes behind the last section, and no certificate table")
        return size, size
    if start < last or start + length > size:
        raise _malformed(f"certificate table: want it within {last} to {size}, got {length} bytes at {start}")
    return start, start + length


def _uint(image: bytes | bytearray, at: int, size: int, what: str) -> int:
    if at + size > len(image):
        raise _malformed(f"{what}: want {size} bytes at {at}, got {len(image)} in all")
    return int.from_bytes(image[at : at + size], "little")


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"PE file: {message}")
