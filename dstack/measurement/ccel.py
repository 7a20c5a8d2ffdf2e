"""CCEL: the event log that firmware keeps of RTMR0 to RTMR3, as an ACPI table's area (guest.md 3.2).

Source: TCG "PC Client Platform Firmware Profile", crypto-agile log format; UEFI 2.10, section 38 (registers count from
one here).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dstack.errors import EventLogMalformedError
from dstack.measurement.acpi import ACPI_NAMES, is_acpi_event
from dstack.measurement.event_log import MAX_EVENTS, RUNTIME_EVENT_TYPE, RUNTIME_IMR, Event

MAX_CCEL = 4 * 1024 * 1024

_SPEC_ID = b"Spec ID Event03\0"
_END = 0xFFFF_FFFF
_DIGEST_SIZES = {0x4: 20, 0xB: 32, 0xC: 48, 0xD: 64}
_SHA384 = 0xC


@dataclass(frozen=True, slots=True)
class CcelLog:
    """A parsed CCEL.

    Attributes:
        events: Of all registers, in order; the header and events that extend no register are left out. The three of
            ACPI blobs carry their names, if there are exactly three.
        size: Bytes up to its end mark; what lies behind is unused space.
        header_imr: Register of the header, counted from zero as everywhere here; it extends nothing.
        header_type: TCG event type of the header.
        header_size: Bytes of the header's specification.
    """

    events: tuple[Event, ...]
    size: int
    header_imr: int
    header_type: int
    header_size: int


def is_ccel(raw: bytes) -> bool:
    """Say whether *raw* begins as a CCEL does."""
    return raw[32:48] == _SPEC_ID


def parse_ccel(raw: bytes) -> CcelLog:
    """Read a CCEL.

    Args:
        raw: The area, at most 4 MiB; it may be longer than the log.

    Raises:
        EventLogMalformedError: Cut short, another form, or an event with other than one SHA-384 digest.
    """
    if len(raw) > MAX_CCEL:
        raise _malformed(f"want at most {MAX_CCEL} bytes, got {len(raw)}")
    reader = _Reader(raw)
    pcr, kind = reader.uint(4), reader.uint(4)
    reader.take(20)
    spec = reader.take(reader.uint(4))
    if not spec.startswith(_SPEC_ID):
        raise _malformed("want the header of a crypto-agile log")
    events: list[Event] = []
    records = 0
    size = reader.at
    while reader.left >= 4 and (imr := reader.uint(4)) != _END:
        records += 1
        if records > MAX_EVENTS:
            raise _malformed(f"want at most {MAX_EVENTS} events")
        event = _event(reader, imr, records)
        if event is not None:
            events.append(event)
        size = reader.at
    if raw[size : size + 4].strip(b"\xff"):
        raise _malformed(f"want an end mark or the end at {size}, got {len(raw) - size} bytes")
    return CcelLog(_named(events), size, max(pcr - 1, 0), kind, len(spec))


def _named(events: list[Event]) -> tuple[Event, ...]:
    """Name the ACPI blobs as newer guests do: firmware measures loader, pointer and tables in this order."""
    at = [number for number, event in enumerate(events) if is_acpi_event(event)]
    if len(at) == len(ACPI_NAMES):
        for number, name in zip(at, ACPI_NAMES, strict=True):
            events[number] = replace(events[number], name=name)
    return tuple(events)


def _event(reader: _Reader, imr: int, number: int) -> Event | None:
    event_type, count = reader.uint(4), reader.uint(4)
    if count != 1:
        raise _malformed(f"event {number}: want one digest, got {count}")
    algorithm = reader.uint(2)
    if algorithm not in _DIGEST_SIZES:
        raise _malformed(f"event {number}: unknown digest algorithm {algorithm:#x}")
    digest = reader.take(_DIGEST_SIZES[algorithm])
    payload = reader.take(reader.uint(4))
    if imr == 0:
        return None
    if algorithm != _SHA384:
        raise _malformed(f"event {number}: want SHA-384, got algorithm {algorithm:#x}")
    if not 1 <= imr <= RUNTIME_IMR + 1 or (imr == RUNTIME_IMR + 1) != (event_type == RUNTIME_EVENT_TYPE):
        raise _malformed(f"event {number}: type {event_type:#x} does not belong in register {imr}")
    if imr == RUNTIME_IMR + 1:
        raise _malformed(f"event {number}: a runtime event, whose name and payload a CCEL does not tell apart")
    return Event(imr - 1, event_type, digest, "", payload)


class _Reader:
    """Reads little-endian numbers and bytes; running out is an error."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self.at = raw, 0

    @property
    def left(self) -> int:
        return len(self._raw) - self.at

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise _malformed(f"want {size} bytes at {self.at}, got {self.left}")
        self.at += size
        return self._raw[self.at - size : self.at]


def _malformed(message: str) -> EventLogMalformedError:
    return EventLogMalformedError(f"CCEL: {message}")
