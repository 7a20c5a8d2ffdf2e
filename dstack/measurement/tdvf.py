"""The TDX metadata of a firmware image: which bytes are loaded where, and which are measured (measurement.md 2.1).

The layout is that of Intel's "TDX Virtual Firmware Design Guide", chapter 11.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from dstack.errors import MeasurementMalformedError
from dstack.measurement.td_hob import PAGE, HobWitness, MemoryRange

MAX_FIRMWARE = 32 * 1024 * 1024
MAX_SECTIONS = 64
# Pages whose addresses are measured; dstack's firmware has about a thousand.
MAX_PAGES = 65_536

_FOOTER_GUID = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
_METADATA_GUID = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")
_FOOTER_END = 32
_ENTRY_TAIL = struct.Struct("<H16s")
_DESCRIPTOR = struct.Struct("<4sIII")
_SECTION = struct.Struct("<IIQQII")
_MR_EXTEND, _PAGE_AUG = 1, 2


class SectionType(IntEnum):
    """What a section is for."""

    BFV = 0
    CFV = 1
    TD_HOB = 2
    TEMP_MEM = 3
    PERM_MEM = 4
    PAYLOAD = 5
    PAYLOAD_PARAM = 6
    TD_INFO = 7
    TD_PARAMS = 8


@dataclass(frozen=True, slots=True)
class Section:
    """One section: bytes of the image (none for plain memory), and the guest memory they fill.

    Attributes:
        data_offset: Of its bytes in the image.
        raw_size: How many bytes.
        gpa: Guest physical address, whole pages.
        mem_size: Bytes of memory, whole pages, at least *raw_size*.
        type: What it is for.
        attributes: Bit 0: its content is measured; bit 1: its pages are added later and not measured at all.
    """

    data_offset: int
    raw_size: int
    gpa: int
    mem_size: int
    type: SectionType
    attributes: int

    @property
    def extended(self) -> bool:
        """Whether its content goes into MRTD."""
        return bool(self.attributes & _MR_EXTEND)

    @property
    def added(self) -> bool:
        """Whether the addresses of its pages go into MRTD."""
        return not self.attributes & _PAGE_AUG


@dataclass(frozen=True, slots=True)
class Firmware:
    """A whole flash image (variables and code) whose TDX metadata was read and found consistent."""

    raw: bytes
    sections: tuple[Section, ...]

    @property
    def cfv(self) -> bytes:
        """The variable store as it is measured into RTMR0.

        Raises:
            MeasurementMalformedError: The image has none, or more than one.
        """
        section = self._only(SectionType.CFV)
        return self.raw[section.data_offset : section.data_offset + section.raw_size]

    @property
    def witness(self) -> HobWitness:
        """Which memory it accepts by itself: all that the TD HOB depends on besides the memory size."""
        accepted = [each for each in self.sections if each.type in (SectionType.TD_HOB, SectionType.TEMP_MEM)]
        ranges = sorted((each.gpa, each.mem_size) for each in accepted)
        return HobWitness(self._only(SectionType.TD_HOB).gpa, tuple(MemoryRange(*each) for each in ranges))

    def _only(self, kind: SectionType) -> Section:
        found = [each for each in self.sections if each.type is kind]
        if len(found) != 1:
            raise _malformed(f"want one {kind.name} section, got {len(found)}")
        return found[0]


def parse_firmware(raw: bytes) -> Firmware:
    """Find and check the TDX metadata of a firmware image.

    Args:
        raw: The whole flash image, at most 32 MiB. The code half alone carries the same metadata, with offsets that
            do not fit it: it is refused.

    Raises:
        MeasurementMalformedError: No metadata, of another version, or sections that contradict the image or each other.
    """
    if len(raw) > MAX_FIRMWARE:
        raise _malformed(f"want at most {MAX_FIRMWARE} bytes, got {len(raw)}")
    sections = _sections(raw, _descriptor_offset(raw))
    _check_memory(sections)
    end = max(section.data_offset + section.raw_size for section in sections)
    # A split CODE image has the offsets of the combined one, so that hashing it would give a wrong MRTD silently.
    if end != len(raw):
        raise _malformed(f"want the whole flash image of {end} bytes that its sections describe, got {len(raw)}")
    return Firmware(raw, sections)


def _descriptor_offset(raw: bytes) -> int:
    """Walk OVMF's table of GUIDs backwards from the end of the image."""
    end = len(raw) - _FOOTER_END
    size, guid = _tail(raw, end, 0)
    if guid != _FOOTER_GUID:
        raise _malformed("no table of GUIDs at its end")
    start = end - size
    if size < _ENTRY_TAIL.size or start < 0:
        raise _malformed(f"table of GUIDs: want a length of 18 to {end}, got {size}")
    at = end - _ENTRY_TAIL.size
    while at > start:
        size, guid = _tail(raw, at, start)
        if size < _ENTRY_TAIL.size or at - size < start:
            raise _malformed(f"table of GUIDs: an entry of {size} bytes does not fit")
        if guid == _METADATA_GUID:
            return _metadata_offset(raw, raw[at - size : at - _ENTRY_TAIL.size])
        at -= size
    raise _malformed("no TDX metadata in its table of GUIDs")


def _tail(raw: bytes, end: int, start: int) -> tuple[int, bytes]:
    if end - _ENTRY_TAIL.size < start:
        raise _malformed("too short for a table of GUIDs")
    size, guid = _ENTRY_TAIL.unpack_from(raw, end - _ENTRY_TAIL.size)
    return size, guid


def _metadata_offset(raw: bytes, data: bytes) -> int:
    if len(data) < 4:
        raise _malformed(f"TDX metadata entry: want 4 bytes, got {len(data)}")
    offset = len(raw) - int.from_bytes(data[-4:], "little")
    if not 0 <= offset <= len(raw) - _DESCRIPTOR.size:
        raise _malformed("TDX metadata lies outside of it")
    return offset


def _sections(raw: bytes, at: int) -> tuple[Section, ...]:
    signature, length, version, count = _DESCRIPTOR.unpack_from(raw, at)
    if signature != b"TDVF":
        raise _malformed(f"TDX metadata: want the signature TDVF, got {signature.hex()}")
    if version != 1:
        raise _malformed(f"TDX metadata: want version 1, got {version}")
    if not 0 < count <= MAX_SECTIONS:
        raise _malformed(f"TDX metadata: want 1 to {MAX_SECTIONS} sections, got {count}")
    size = _DESCRIPTOR.size + count * _SECTION.size
    # EDK2 counts the GUID in front of the descriptor or leaves it out.
    if length not in (size, size + 16) or at + size > len(raw):
        raise _malformed(f"TDX metadata: want {size} bytes for {count} sections, got {length}")
    first = at + _DESCRIPTOR.size
    return tuple(_section(raw, first + number * _SECTION.size, number) for number in range(count))


def _section(raw: bytes, at: int, number: int) -> Section:
    data_offset, raw_size, gpa, mem_size, kind, attributes = _SECTION.unpack_from(raw, at)
    what = f"section {number}"
    if kind not in SectionType.__members__.values():
        raise _malformed(f"{what}: unknown type {kind}")
    if attributes & ~(_MR_EXTEND | _PAGE_AUG):
        raise _malformed(f"{what}: unknown attributes {attributes:#x}")
    if gpa % PAGE or mem_size % PAGE or gpa + mem_size > 2**52:
        raise _malformed(f"{what}: want whole pages within 52 bits, got {mem_size:#x} bytes at {gpa:#x}")
    if mem_size < raw_size:
        raise _malformed(f"{what}: {raw_size} bytes do not fit {mem_size} bytes of memory")
    if attributes & _MR_EXTEND and raw_size != mem_size:
        raise _malformed(f"{what}: measured, so want {mem_size} bytes of data, got {raw_size}")
    if data_offset + raw_size > len(raw):
        raise _malformed(f"{what}: want its data within {len(raw)} bytes, got {data_offset} + {raw_size}")
    return Section(data_offset, raw_size, gpa, mem_size, SectionType(kind), attributes)


def _check_memory(sections: tuple[Section, ...]) -> None:
    hobs = sum(section.type is SectionType.TD_HOB for section in sections)
    if hobs > 1:
        raise _malformed(f"want one TD_HOB section, got {hobs}")
    in_order = sorted((section for section in sections if section.mem_size), key=lambda section: section.gpa)
    if any(left.gpa + left.mem_size > right.gpa for left, right in pairwise(in_order)):
        raise _malformed("sections overlap in memory")
    pages = sum(section.mem_size for section in sections if section.added) // PAGE
    if pages > MAX_PAGES:
        raise _malformed(f"want at most {MAX_PAGES} measured pages, got {pages}")
    if sum(section.raw_size for section in sections if section.extended) > MAX_FIRMWARE:
        raise _malformed(f"want at most {MAX_FIRMWARE} measured bytes")


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"firmware: {message}")
