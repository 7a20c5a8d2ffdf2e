"""The ACPI blobs a host gives its guest's firmware, and their digests in RTMR0 (measurement.md 3.3).

QEMU hands out three files: the tables, the pointer to them, and the loader's commands. The last two follow from the
first, so that one blob is the whole of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha384
from types import MappingProxyType

from dstack.errors import EventLogMalformedError, MeasurementMalformedError
from dstack.measurement.event_log import Event
from dstack.values import Register

ACPI_EVENT_TYPE = 10
ACPI_PAYLOAD = b"ACPI DATA"
ACPI_NAMES = ("acpi-loader", "acpi-rsdp", "acpi-tables")

MAX_TABLES_BLOB = 2 * 1024 * 1024
MAX_TABLES = 24
LOADER_SIZE = 4096
RSDP_SIZE = 20

_HEADER = struct.Struct("<4sI")
_TABLE_HEADER_SIZE = 36
_CHECKSUM_AT = 9
_TABLES_FILE, _RSDP_FILE = b"etc/acpi/tables", b"etc/acpi/rsdp"
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_FSEG = 1, 2
# Tables that hold no pointer, so that a checksum is all the loader does to them.
_PLAIN = frozenset({b"APIC", b"HPET", b"MCFG", b"SLIT", b"SRAT", b"WAET"})
# FACP: where the pointers to FACS and (twice) DSDT are, and how wide.
_FACP_POINTERS = ((36, 4, b"FACS"), (40, 4, b"DSDT"), (140, 8, b"DSDT"))


class AcpiSource(StrEnum):
    """Where ACPI digests came from; each says what an auditor has to believe."""

    OWN_QEMU = "own-qemu"
    CAPTURED = "captured"
    HELPER = "helper"
    FROM_LOG = "from-log"

    @property
    def verified(self) -> bool:
        """Whether the content of the tables was seen, and not only their digests in the machine's own log."""
        return self is not AcpiSource.FROM_LOG


@dataclass(frozen=True, slots=True)
class AcpiDigests:
    """The digests of the three blobs, by event name, and where they came from.

    Attributes:
        by_name: One for each of `ACPI_NAMES`.
        source: Which of the four.
        detail: What exactly: a file, a program, a version.
        blobs: The tables themselves; None if they come from a log.
    """

    by_name: MappingProxyType[str, Register]
    source: AcpiSource
    detail: str
    blobs: AcpiBlobs | None = None


@dataclass(frozen=True, slots=True)
class AcpiBlobs:
    """The three files as QEMU hands them out."""

    tables: bytes
    rsdp: bytes
    loader: bytes

    @property
    def digests(self) -> MappingProxyType[str, Register]:
        """Digest of each, by the name of its event."""
        blobs = zip(ACPI_NAMES, (self.loader, self.rsdp, self.tables), strict=True)
        return MappingProxyType({name: Register(sha384(blob).digest()) for name, blob in blobs})


@dataclass(frozen=True, slots=True)
class _Table:
    signature: bytes
    offset: int
    length: int


def derive_acpi_blobs(tables: bytes) -> AcpiBlobs:
    """Compute pointer and loader commands from the blob of tables.

    Args:
        tables: `etc/acpi/tables` before the loader ran: pointers are offsets in it, checksums are zero.

    Raises:
        MeasurementMalformedError: It is not such a blob, or holds tables that QEMU links in ways unknown here.
    """
    found = _walk(tables)
    rsdt = _only(found, b"RSDT")
    if found[-1] is not rsdt:
        raise _malformed("want the RSDT as the last table")
    rsdp = struct.pack("<8sB6sBI", b"RSD PTR ", 0, b"BOCHS ", 0, rsdt.offset)
    commands = b"".join(_commands(tables, found, rsdt))
    if len(commands) > LOADER_SIZE:
        raise _malformed(f"want at most {LOADER_SIZE} bytes of loader commands, got {len(commands)}")
    return AcpiBlobs(tables, rsdp, commands.ljust(LOADER_SIZE, b"\0"))


def checked_acpi_blobs(tables: bytes, rsdp: bytes, loader: bytes) -> AcpiBlobs:
    """Take three blobs if pointer and loader are those that follow from the tables.

    Raises:
        MeasurementMalformedError: They are not.
    """
    derived = derive_acpi_blobs(tables)
    for name, got, wanted in (("RSDP", rsdp, derived.rsdp), ("loader", loader, derived.loader)):
        if got != wanted:
            raise _malformed(f"the {name} of {len(got)} bytes is not the one that follows from the tables")
    return derived


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


def is_acpi_event(event: Event) -> bool:
    """Whether an event is about one of the three blobs, named or not."""
    return event.imr == 0 and event.event_type == ACPI_EVENT_TYPE and event.payload == ACPI_PAYLOAD


def _walk(tables: bytes) -> tuple[_Table, ...]:
    if len(tables) > MAX_TABLES_BLOB:
        raise _malformed(f"want at most {MAX_TABLES_BLOB} bytes, got {len(tables)}")
    found: list[_Table] = []
    at = 0
    while at + _HEADER.size <= len(tables):
        signature, length = _HEADER.unpack_from(tables, at)
        if not length:
            break
        if length < _TABLE_HEADER_SIZE or at + length > len(tables):
            raise _malformed(f"table {signature!r} at {at}: a length of {length} does not fit")
        found.append(_Table(signature, at, length))
        if len(found) > MAX_TABLES:
            raise _malformed(f"want at most {MAX_TABLES} tables")
        at += length
    if not found:
        raise _malformed("no table in it")
    if any(tables[at:]):
        raise _malformed(f"want zeros behind the last table, at {at}")
    return tuple(found)


def _commands(tables: bytes, found: Sequence[_Table], rsdt: _Table) -> Iterator[bytes]:
    yield _allocate(_RSDP_FILE, 16, _ZONE_FSEG)
    yield _allocate(_TABLES_FILE, 64, _ZONE_HIGH)
    for table in found:
        if table.signature == b"FACS":
            continue
        if table.signature == b"FACP":
            yield from _facp_pointers(tables, found, table)
        elif table is rsdt:
            yield from _rsdt_pointers(tables, found, table)
        elif table.signature != b"DSDT" and table.signature not in _PLAIN:
            raise _malformed(f"table {table.signature!r}: how QEMU links it is not known here")
        yield _checksum(_TABLES_FILE, table.offset + _CHECKSUM_AT, table.offset, table.length)
    yield _pointer(_RSDP_FILE, 16, 4)
    yield _checksum(_RSDP_FILE, 8, 0, RSDP_SIZE)


def _facp_pointers(tables: bytes, found: Sequence[_Table], facp: _Table) -> Iterator[bytes]:
    for at, width, target in _FACP_POINTERS:
        if at + width > facp.length:
            raise _malformed(f"FACP: want at least {at + width} bytes, got {facp.length}")
        _check_target(tables, facp.offset + at, width, _only(found, target))
        yield _pointer(_TABLES_FILE, facp.offset + at, width)


def _rsdt_pointers(tables: bytes, found: Sequence[_Table], rsdt: _Table) -> Iterator[bytes]:
    listed = [table for table in found if table.signature not in (b"FACS", b"DSDT") and table is not rsdt]
    if rsdt.length != _TABLE_HEADER_SIZE + 4 * len(listed):
        raise _malformed(f"RSDT: want pointers to {len(listed)} tables, got {rsdt.length} bytes")
    for number, table in enumerate(listed):
        at = rsdt.offset + _TABLE_HEADER_SIZE + 4 * number
        _check_target(tables, at, 4, table)
        yield _pointer(_TABLES_FILE, at, 4)


def _check_target(tables: bytes, at: int, width: int, target: _Table) -> None:
    got = int.from_bytes(tables[at : at + width], "little")
    if got != target.offset:
        raise _malformed(f"want a pointer to {target.signature.decode('latin-1')} ({target.offset}) at {at}, got {got}")


def _only(found: Sequence[_Table], signature: bytes) -> _Table:
    named = [table for table in found if table.signature == signature]
    if len(named) != 1:
        raise _malformed(f"want one table {signature.decode()}, got {len(named)}")
    return named[0]


def _allocate(file: bytes, align: int, zone: int) -> bytes:
    return struct.pack("<I56sIB63x", _ALLOCATE, file, align, zone)


def _pointer(file: bytes, at: int, width: int) -> bytes:
    return struct.pack("<I56s56sIB7x", _ADD_POINTER, file, _TABLES_FILE, at, width)


def _checksum(file: bytes, at: int, start: int, length: int) -> bytes:
    return struct.pack("<I56sIII56x", _ADD_CHECKSUM, file, at, start, length)


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"ACPI tables: {message}")
