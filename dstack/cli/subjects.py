"""What a command line names as evidence: logs, quotes, answers that hold both, and measurements of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from dstack.attestation.quote import MAX_PADDING, MAX_QUOTE, TdReport, looks_like_quote, parse_quote
from dstack.attestation.reference import quoted_registers
from dstack.cli.files import read_input
from dstack.errors import EventLogMalformedError, InputError, MeasurementMalformedError, QuoteMalformedError
from dstack.measurement.ccel import is_ccel, parse_ccel
from dstack.measurement.difference import Side
from dstack.measurement.event_log import Event, parse_event_log
from dstack.measurement.labels import Line, labelled
from dstack.measurement.result import REGISTERS
from dstack.measurement.result_json import MAX_RESULT, parse_measurement
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Register, bytes_from_hex


@dataclass(frozen=True, slots=True)
class Subject:
    """What a file holds; None where it does not.

    Attributes:
        name: The file.
        quote: Unparsed.
        events: Of its log.
        vm_config: The text of the VM config, as its host states it.
        registers: As a quote, a guest's info or a measurement states them.
        lines: Its events with their meaning.
        acpi_from_log: It is a measurement whose ACPI digests were taken from a machine's own log.
    """

    name: str
    quote: bytes | None = None
    events: tuple[Event, ...] | None = None
    vm_config: str | None = None
    registers: dict[str, Register] | None = None
    lines: tuple[Line, ...] | None = None
    acpi_from_log: bool = False

    @property
    def side(self) -> Side:
        """It as one side of a comparison."""
        lines = self.lines if self.events is None else labelled(self.events)
        return Side(self.name, self.registers or {}, lines, self.acpi_from_log)


def read_subject(path: str) -> Subject:
    """Read a file, or standard input for `-`.

    It may be a log (JSON or CCEL), a quote (bytes or hexadecimal), an answer of GetQuote, Attest or Info, an
    attestation blob, an RA-TLS certificate, or what `dstack measure --json` wrote.

    Raises:
        InputError: It is none of them.
    """
    return parse_subject(read_input(path, limit=MAX_RESULT), path)


def parse_subject(raw: bytes, name: str) -> Subject:
    """Tell by its first bytes what *raw* is, and read that; see `read_subject`."""
    text = raw.lstrip()
    if not text:
        raise InputError(f"{name}: want an event log, a quote or an answer that holds them, got nothing")
    if text.startswith(b"["):
        return Subject(name, events=parse_event_log(raw))
    if text.startswith(b"{"):
        return _parse_object(raw, name)
    if is_ccel(raw):
        return Subject(name, events=parse_ccel(raw).events)
    quote = quote_bytes(raw)
    if looks_like_quote(quote):
        return with_quote(Subject(name), quote)
    return _parse_envelope(raw, name)


def held_vm_config(raw: bytes, name: str) -> str:
    """Give the text of a VM config: *raw* itself, or what an answer of GetQuote or an attestation holds.

    Raises:
        InputError: It is no text, or holds none.
    """
    if raw.lstrip().startswith(b"{"):
        value = parse_json(raw, what=name, limit=MAX_RESULT, error=MeasurementMalformedError)
        if isinstance(value, dict) and not value.keys() & {"quote", "event_log", "attestation"}:
            return raw.decode()
    held = parse_subject(raw, name).vm_config
    if held is None:
        raise InputError(f"{name}: it holds no VM config")
    return held


def quote_bytes(content: bytes) -> bytes:
    """Give the quote itself: *content*, or what it is the hexadecimal of."""
    text = content.strip()
    return bytes_from_hex(text.decode(), what="quote") if text.isalnum() and text.isascii() else content


def read_quote(path: str) -> bytes:
    """Read a file with a quote, bytes or hexadecimal."""
    return quote_bytes(read_input(path, limit=2 * (MAX_QUOTE + MAX_PADDING)))


def with_quote(subject: Subject, quote: bytes) -> Subject:
    """Add a quote, and the registers it states.

    Raises:
        QuoteMalformedError: It is none, or one of SGX.
    """
    body = parse_quote(quote).body
    if not isinstance(body, TdReport):
        raise QuoteMalformedError("quote: want a TDX quote, got one of SGX")
    return replace(subject, quote=quote, registers=quoted_registers(body))


def _parse_object(raw: bytes, name: str) -> Subject:
    value = parse_json(raw, what=name, limit=MAX_RESULT, error=EventLogMalformedError)
    members = Members.of(value, what=name, error=EventLogMalformedError)
    if members.has("registers"):
        measurement = parse_measurement(raw)
        return Subject(
            name,
            registers=measurement.registers,
            lines=measurement.lines,
            acpi_from_log=measurement.acpi_from_log,
        )
    if members.has("tcb_info"):
        return _parse_tcb_info(members.text("tcb_info"), name)
    if members.has("mrtd"):
        return _parse_tcb_info(raw, name)
    if members.has("attestation"):
        return _parse_envelope(raw, name)
    if not members.has("event_log") and not members.has("quote"):
        raise InputError(f"{name}: want an event log, a quote, an answer of GetQuote or Info, or a measurement")
    events = parse_event_log(members.text("event_log")) if members.has("event_log") else None
    vm_config = members.text("vm_config") if members.has("vm_config") else None
    subject = Subject(name, events=events, vm_config=vm_config)
    return with_quote(subject, members.hexadecimal("quote")) if members.has("quote") else subject


def _parse_tcb_info(raw: str | bytes, name: str) -> Subject:
    """What a guest's Info says of itself: registers and a log, and no quote that would prove them."""
    value = parse_json(raw, what="tcb_info", limit=MAX_RESULT, error=EventLogMalformedError)
    members = Members.of(value, what="tcb_info", error=EventLogMalformedError)
    registers = {each: members.sized(each, Register) for each in REGISTERS if members.has(each)}
    log = members.values.get("event_log")
    events = None
    if isinstance(log, list):
        events = parse_event_log(json.dumps(log))
    return Subject(name, events=events, registers=registers)


def _parse_envelope(raw: bytes, name: str) -> Subject:
    # What reads certificates and blobs is slow to load.
    from dstack.attestation.envelope import open_envelope

    envelope = open_envelope(raw)
    evidence = envelope.evidence
    subject = Subject(name, events=evidence.event_log if envelope.has_log else None, vm_config=evidence.config or None)
    return with_quote(subject, evidence.quote)
