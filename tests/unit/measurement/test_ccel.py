"""CCEL: the firmware's own log, read to its end mark and no further."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from dstack.errors import EventLogMalformedError
from dstack.measurement.ccel import MAX_CCEL, is_ccel, parse_ccel
from dstack.measurement.event_log import MAX_EVENTS, Event

SPEC = b"Spec ID Event03\0" + bytes(17)
END = b"\xff" * 4


def header(spec: bytes = SPEC, size: int | None = None) -> bytes:
    """The first record, in the old form."""
    return struct.pack("<II20xI", 1, 3, len(spec) if size is None else size) + spec


def record(imr: int = 1, kind: int = 4, algorithm: int = 0xC, payload: bytes = b"p", **change: Any) -> bytes:
    """One record with one digest."""
    digest = b"d" * change.get("digest", {4: 20, 0xB: 32, 0xC: 48, 0xD: 64}.get(algorithm, 48))
    head = struct.pack("<IIIH", imr, kind, change.get("count", 1), algorithm)
    return head + digest + struct.pack("<I", change.get("size", len(payload))) + payload


def test_events_are_read_up_to_the_end_mark() -> None:
    """Registers count from zero; register zero of the log extends nothing; what lies behind does not matter."""
    log = header() + record(1) + record(0, algorithm=4) + record(3, 6, payload=b"") + END + b"\xffleft over"

    read = parse_ccel(log)

    assert read.events == (Event(0, 4, b"d" * 48, "", b"p"), Event(2, 6, b"d" * 48, "", b""))
    assert (read.size, read.header_imr, read.header_type, read.header_size) == (len(log) - 4 - 10, 0, 3, 33)


def test_a_log_may_fill_its_area() -> None:
    """Then there is no end mark, or only the start of one."""
    log = header() + record(1)

    for area in (log, log + b"\xff", log + b"\xff" * 3):
        assert (parse_ccel(area).size, len(parse_ccel(area).events)) == (len(log), 1)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"", "want 4 bytes at 0, got 0"),
        (header()[:40], "want 33 bytes at 32, got 8"),
        (header(b"Spec ID Event02\0"), "want the header of a crypto-agile log"),
        (header(size=2**32 - 1), "want 4294967295 bytes at 32"),
        (header() + record()[:30], "want 48 bytes at 79, got 16"),
        (header() + record() + b"\1\0\0", "want an end mark or the end at 132, got 3 bytes"),
        (header() + record(size=100), "want 100 bytes at 131, got 1"),
        (header() + record(count=2), "event 1: want one digest, got 2"),
        (header() + record(count=0), "event 1: want one digest, got 0"),
        (header() + record(algorithm=0x12), "event 1: unknown digest algorithm 0x12"),
        (header() + record() + record(algorithm=0xB), "event 2: want SHA-384, got algorithm 0xb"),
        (header() + record(5), "event 1: type 0x4 does not belong in register 5"),
        (header() + record(4), "event 1: type 0x4 does not belong in register 4"),
        (header() + record(1, 0x08000001), "event 1: type 0x8000001 does not belong in register 1"),
        (header() + record(4, 0x08000001), "event 1: a runtime event"),
        (header() + record(payload=b"") * (MAX_EVENTS + 1), f"want at most {MAX_EVENTS} events"),
        (bytes(MAX_CCEL + 1), f"want at most {MAX_CCEL} bytes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_logs_of_another_form_are_refused(log: bytes, message: str) -> None:
    """Cut short, with several digests, or about registers that do not exist."""
    with pytest.raises(EventLogMalformedError, match=f"CCEL: {message}"):
        parse_ccel(log)


def test_it_is_known_by_its_header() -> None:
    """A JSON log is not taken for one."""
    assert is_ccel(header())
    assert not is_ccel(b'[{"imr":0}]' * 10)


def test_a_captured_log_replays(shared_vectors: Path) -> None:
    """A real area of 64 KiB has 18 events."""
    raw = (shared_vectors / "guest" / "fixtures" / "ccel.bin").read_bytes()

    assert (len(parse_ccel(raw).events), parse_ccel(raw).size) == (18, 1933)
