"""The TD HOB: the memory that QEMU's TD firmware hands on, and what it follows from (measurement.md 3.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from dstack.errors import MeasurementMalformedError

PAGE = 4096
# QEMU's q35 keeps memory below 4 GiB together up to here; from here on it is split at 2 GiB.
HIGH_MEMORY = 0xB000_0000
LOW_MEMORY_END = 0x8000_0000
FOUR_GIB = 0x1_0000_0000

# Types of a resource HOB.
_SYSTEM_MEMORY, _UNACCEPTED = 0, 7


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """A stretch of guest memory, in bytes and whole pages."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class HobWitness:
    """Which memory a firmware accepts before it starts: all that the TD HOB depends on, besides the memory size.

    Attributes:
        hob_start: Where the TD HOB itself lies.
        accepted: Its TD_HOB and TEMP_MEM sections, sorted, not overlapping and not merged.
    """

    hob_start: int
    accepted: tuple[MemoryRange, ...]

    def __post_init__(self) -> None:
        if not self.accepted:
            raise _malformed("want at least one memory range")
        numbers = [number for part in self.accepted for number in (part.start, part.length)]
        if any(number < 0 or number % PAGE or number >= 2**52 for number in (*numbers, self.hob_start)):
            raise _malformed("want ranges of whole pages within 52 bits")
        if any(not part.length for part in self.accepted):
            raise _malformed("a memory range is empty")
        if any(left.end > right.start for left, right in pairwise(self.accepted)):
            raise _malformed("memory ranges overlap or are not sorted")
        if all(part.start != self.hob_start for part in self.accepted):
            raise _malformed("no memory range starts at the TD HOB")


def parse_hob_witness(raw: bytes) -> HobWitness:
    """Read the `td_hob` bytes of a measurement document.

    Args:
        raw: LEB128 varints in pages: base, HOB minus base, count, then start minus base and length per range.

    Raises:
        MeasurementMalformedError: Another form, a varint that is not the shortest, or bytes left over.
    """
    numbers = _varints(raw)
    if len(numbers) < 3 or len(numbers) != 3 + 2 * numbers[2]:
        raise _malformed("want three numbers and then two per range, got more or fewer")
    base, hob, _, *pairs = numbers
    ranges = tuple(
        MemoryRange((base + start) * PAGE, length * PAGE) for start, length in zip(pairs[::2], pairs[1::2], strict=True)
    )
    witness = HobWitness((base + hob) * PAGE, ranges)
    if ranges[0].start != base * PAGE:
        raise _malformed("the first range does not start at the base")
    return witness


def serialise_hob_witness(witness: HobWitness) -> bytes:
    """Write the `td_hob` bytes of a measurement document."""
    base = witness.accepted[0].start
    numbers = [base, witness.hob_start - base, len(witness.accepted) * PAGE]
    for part in witness.accepted:
        numbers += [part.start - base, part.length]
    return b"".join(_varint(number // PAGE) for number in numbers)


def td_hob(witness: HobWitness, memory_size: int) -> bytes:
    """Build the list of memory that QEMU's TD firmware hands on, as it is measured (without its end marker).

    Args:
        witness: What the firmware accepts by itself.
        memory_size: Bytes of guest memory.

    Raises:
        MeasurementMalformedError: The memory does not hold the ranges, or is not whole pages.
    """
    end = witness.accepted[-1].end
    if memory_size % PAGE or not end < memory_size < 2**52 or end > LOW_MEMORY_END:
        raise MeasurementMalformedError(
            f"memory size: want whole pages, with the firmware's ranges below {end:#x} in low memory, got {memory_size}"
        )
    resources = b"".join(_resource(*part) for part in _memory_map(witness, memory_size))
    # 56 bytes of handoff HOB, the resources, and room for the 8-byte end marker.
    end_of_list = witness.hob_start + 56 + len(resources) + 8
    return struct.pack("<HHIII4QQ", 1, 56, 0, 9, 0, 0, 0, 0, 0, end_of_list) + resources


def _memory_map(witness: HobWitness, memory_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and length: accepted ranges, and unaccepted memory between and behind them."""
    at = 0
    for part in witness.accepted:
        if at < part.start:
            yield _UNACCEPTED, at, part.start - at
        yield _SYSTEM_MEMORY, part.start, part.length
        at = part.end
    if memory_size < HIGH_MEMORY:
        yield _UNACCEPTED, at, memory_size - at
        return
    if at < LOW_MEMORY_END:
        yield _UNACCEPTED, at, LOW_MEMORY_END - at
    yield _UNACCEPTED, FOUR_GIB, memory_size - LOW_MEMORY_END


def _resource(kind: int, start: int, length: int) -> bytes:
    return struct.pack("<HHI16xIIQQ", 3, 48, 0, kind, 7, start, length)


def _varints(raw: bytes) -> list[int]:
    numbers: list[int] = []
    number = shift = 0
    for byte in raw:
        number |= (byte & 0x7F) << shift
        if number >= 2**64 or (byte == 0 and shift):
            raise _malformed("a number is above 64 bits, or longer than it has to be")
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise _malformed("it ends inside a number")
    return numbers


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"TD HOB witness: {message}")
