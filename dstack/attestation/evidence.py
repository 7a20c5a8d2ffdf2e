"""Evidence: a quote, the event log behind its registers, and the VM's configuration (kms.md 5, guest.md 3.6).

Written in the V0 (SCALE) form, which every reader takes; the V1 form is in `evidence_v1`. Nothing in it is trusted
before `verify_quote` and `appraise`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dstack.attestation import scale
from dstack.attestation.cursor import Cursor
from dstack.attestation.evidence_v1 import parse_evidence_v1
from dstack.attestation.evidence_value import MAX_EVIDENCE, Evidence
from dstack.attestation.quote import looks_like_quote, parse_quote
from dstack.errors import EvidenceMalformedError
from dstack.measurement.acpi import is_acpi_event
from dstack.measurement.event_log import MAX_EVENTS, Event, RuntimeEvent
from dstack.values import ReportData

__all__ = [
    "MAX_EVIDENCE",
    "Evidence",
    "bare_quote_evidence",
    "looks_like_quote",
    "parse_evidence",
    "serialise_evidence",
    "strip_evidence",
]

_V0, _TDX = 0x00, 0x00
_MESSAGE_PACK_MAPS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})


def parse_evidence(raw: bytes) -> Evidence:
    """Read an attestation blob, to its last byte.

    A bare quote is taken too, as evidence without a log: it can be verified, and is refused when appraised.

    Raises:
        EvidenceMalformedError: Another form or platform, cut short, or with bytes left over.
        EventLogMalformedError: An event in it contradicts itself.
        QuoteMalformedError: It is a bare quote, but not of its form.
    """
    if not 0 < len(raw) <= MAX_EVIDENCE:
        raise EvidenceMalformedError(f"evidence: want 1 to {MAX_EVIDENCE} bytes, got {len(raw)}")
    if looks_like_quote(raw):
        return bare_quote_evidence(raw)
    if raw[0] in _MESSAGE_PACK_MAPS:
        return parse_evidence_v1(raw)
    if raw[0] != _V0:
        raise EvidenceMalformedError(f"evidence: unknown form, first byte {raw[0]:#04x}")
    return _parse_v0(Cursor(raw[1:], EvidenceMalformedError))


def bare_quote_evidence(raw: bytes) -> Evidence:
    """A quote as evidence without a log.

    Raises:
        QuoteMalformedError: It is not of its form.
    """
    return Evidence(raw, (), (), parse_quote(raw).report_data, "")


def serialise_evidence(evidence: Evidence) -> bytes:
    """Write evidence in the V0 form.

    Raises:
        EvidenceMalformedError: An event is of version 2, which V0 cannot carry.
    """
    versions = {event.version for event in evidence.event_log} | {event.version for event in evidence.runtime_events}
    if versions - {1}:
        raise EvidenceMalformedError("evidence: the V0 form cannot carry an event of version 2")
    return b"".join(
        (
            bytes((_V0, _TDX)),
            scale.write_bytes(evidence.quote),
            _write_all(_write_event(event) for event in evidence.event_log),
            _write_all(
                scale.write_bytes(event.name.encode()) + scale.write_bytes(event.payload)
                for event in evidence.runtime_events
            ),
            evidence.report_data,
            scale.write_bytes(evidence.config.encode()),
        )
    )


def strip_evidence(evidence: Evidence) -> Evidence:
    """Reduce the log to what a certificate carries (kms.md 5.4).

    Kept are the runtime events, without their digests, and the ACPI events of RTMR0, with theirs.
    """
    kept = [_strip_event(event) for event in evidence.event_log if event.runtime is not None or is_acpi_event(event)]
    return replace(evidence, event_log=tuple(kept))


def _parse_v0(cursor: Cursor) -> Evidence:
    platform = cursor.uint(1, "platform")
    if platform != _TDX:
        raise EvidenceMalformedError(f"evidence: want platform 0 (TDX), got {platform}")
    evidence = Evidence(
        quote=scale.read_bytes(cursor, "quote"),
        event_log=tuple(_read_event(cursor) for _ in range(_count(cursor, "event log"))),
        runtime_events=tuple(_read_runtime_event(cursor) for _ in range(_count(cursor, "runtime events"))),
        report_data=ReportData(cursor.take(ReportData.SIZE, "report data")),
        config=scale.read_text(cursor, "config"),
    )
    cursor.end("evidence")
    return evidence


def _count(cursor: Cursor, what: str) -> int:
    count = scale.read_length(cursor, what)
    if count > MAX_EVENTS:
        raise EvidenceMalformedError(f"{what}: want at most {MAX_EVENTS} events, got {count}")
    return count


def _read_event(cursor: Cursor) -> Event:
    return Event(
        imr=cursor.uint(4, "imr"),
        event_type=cursor.uint(4, "event type"),
        digest=scale.read_bytes(cursor, "event digest"),
        name=scale.read_text(cursor, "event name"),
        payload=scale.read_bytes(cursor, "event payload"),
    )


def _read_runtime_event(cursor: Cursor) -> RuntimeEvent:
    return RuntimeEvent(scale.read_text(cursor, "event name"), scale.read_bytes(cursor, "event payload"))


def _write_event(event: Event) -> bytes:
    return (
        event.imr.to_bytes(4, "little")
        + event.event_type.to_bytes(4, "little")
        + scale.write_bytes(event.digest)
        + scale.write_bytes(event.name.encode())
        + scale.write_bytes(event.payload)
    )


def _write_all(items: Iterable[bytes]) -> bytes:
    written = tuple(items)
    return scale.write_length(len(written)) + b"".join(written)


def _strip_event(event: Event) -> Event:
    return event if event.runtime is None else replace(event, digest=b"")
