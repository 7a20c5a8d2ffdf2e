"""What OVMF measures into RTMR0: the TD HOB, variables, ACPI tables and boot options (measurement.md 3).

MRTD from firmware bytes is not here yet: it comes with the measurement document.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha384
from itertools import pairwise

from dstack.errors import EventLogMalformedError, MeasurementMalformedError
from dstack.measurement.event_log import Event
from dstack.values import Register

PAGE = 4096
# QEMU's q35 keeps memory below 4 GiB together up to here; from here on it is split at 2 GiB.
HIGH_MEMORY = 0xB000_0000
LOW_MEMORY_END = 0x8000_0000
FOUR_GIB = 0x1_0000_0000

ACPI_EVENT_TYPE = 10
ACPI_PAYLOAD = b"ACPI DATA"
ACPI_NAMES = ("acpi-loader", "acpi-rsdp", "acpi-tables")

# Types of a resource HOB (measurement.md 3.2).
_SYSTEM_MEMORY, _UNACCEPTED = 0, 7

# TCG event types, as OVMF uses them.
EV_SEPARATOR = 4
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001
EV_EFI_VARIABLE_BOOT = 0x8000_0002
EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000A
EV_EFI_HANDOFF_TABLES2 = 0x8000_000B

_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_IMAGE_SECURITY_DATABASE = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
_SECURE_BOOT_VARIABLES = (
    ("SecureBoot", _GLOBAL_VARIABLE),
    ("PK", _GLOBAL_VARIABLE),
    ("KEK", _GLOBAL_VARIABLE),
    ("db", _IMAGE_SECURITY_DATABASE),
    ("dbx", _IMAGE_SECURITY_DATABASE),
)

# Content of an empty variable store of the 4 MiB layout (checked against Debian's OVMF.fd).
CFV_DIGEST = Register.from_hex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"
)
SEPARATOR = bytes(4)
_BOOT_ORDER = bytes(2)
# Load option of OVMF's UiApp: attributes, path length, description, device path (seen in a real event log).
_BOOT0000 = bytes.fromhex(
    "090100002c0055006900410070007000000004071400c9bdb87cebf8344faaea3ee4af6516a1"
    "0406140021aa2c4614760345836e8ab6f46623317fff0400"
)


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


def rtmr0_events(witness: HobWitness, memory_size: int, acpi: Mapping[str, Register]) -> tuple[Event, ...]:
    """List what firmware of the variant `pre202505` extends into RTMR0.

    Args:
        witness: See `td_hob`.
        memory_size: See `td_hob`.
        acpi: Digest of each of `ACPI_NAMES`.

    Raises:
        MeasurementMalformedError: See `td_hob`; or *acpi* has other names.
    """
    if set(acpi) != set(ACPI_NAMES):
        raise MeasurementMalformedError(f"ACPI digests: want {', '.join(ACPI_NAMES)}, got {', '.join(sorted(acpi))}")
    variables = (_empty_variable(name, guid) for name, guid in _SECURE_BOOT_VARIABLES)
    return (
        _measured(EV_EFI_HANDOFF_TABLES2, td_hob(witness, memory_size)),
        Event(0, EV_EFI_PLATFORM_FIRMWARE_BLOB2, CFV_DIGEST, "", b""),
        *(_measured(EV_EFI_VARIABLE_DRIVER_CONFIG, variable) for variable in variables),
        _measured(EV_SEPARATOR, SEPARATOR),
        *(Event(0, ACPI_EVENT_TYPE, acpi[name], name, ACPI_PAYLOAD) for name in ACPI_NAMES),
        _measured(EV_EFI_VARIABLE_BOOT, _BOOT_ORDER),
        _measured(EV_EFI_VARIABLE_BOOT, _BOOT0000),
    )


def acpi_digests(events: Sequence[Event]) -> dict[str, Register]:
    """Take the digests of the three ACPI blobs from a log, by name and never by position.

    Proves nothing of the ACPI content: a host that supplies AML of its choice has these digests too.

    Raises:
        EventLogMalformedError: Not exactly the three, each named once, with 48 bytes.
    """
    found = [event for event in events if event.imr == 0 and event.event_type == ACPI_EVENT_TYPE]
    if sorted(event.name for event in found) != list(ACPI_NAMES):
        names = ", ".join(repr(event.name[:20]) for event in found[:8]) or "none"
        raise EventLogMalformedError(f"ACPI events: want {', '.join(ACPI_NAMES)}, once each, got {names}")
    for event in found:
        if event.payload != ACPI_PAYLOAD or len(event.digest) != Register.SIZE:
            raise EventLogMalformedError(
                f"{event.name}: want payload 'ACPI DATA' and a digest of {Register.SIZE} bytes"
            )
    return {event.name: Register(event.digest) for event in found}


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
    yield _UNACCEPTED, at, LOW_MEMORY_END - at
    yield _UNACCEPTED, FOUR_GIB, memory_size - LOW_MEMORY_END


def _resource(kind: int, start: int, length: int) -> bytes:
    return struct.pack("<HHI16xIIQQ", 3, 48, 0, kind, 7, start, length)


def _measured(event_type: int, data: bytes) -> Event:
    # The payload of a boot event describes it and is not measured; stripped logs leave it out, and so do we.
    return Event(0, event_type, sha384(data).digest(), "", b"")


def _empty_variable(name: str, guid: bytes) -> bytes:
    return guid + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")


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
