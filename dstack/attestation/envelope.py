"""Envelopes: whatever evidence comes in, recognised by its content alone.

A bare quote, an attestation blob (V0 SCALE or V1 MessagePack), an RA-TLS certificate (its evidence in extension .8, or
in .1 and .2), the JSON answer of a guest agent's GetQuote or Attest. Quotes and blobs may be in hexadecimal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dstack.attestation.certificates import der_of, parse_chain
from dstack.attestation.evidence import MAX_EVIDENCE, Evidence, bare_quote_evidence, parse_evidence
from dstack.attestation.quote import looks_like_quote, parse_quote
from dstack.attestation.ratls import certificate_form, certificate_report_data, evidence_from_certificate
from dstack.errors import EvidenceMalformedError
from dstack.measurement.event_log import parse_event_log, runtime_events
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import ReportData, bytes_from_hex

_PEM = b"-----BEGIN"
_DER_SEQUENCE = 0x30
# Hexadecimal takes two digits a byte.
MAX_ENVELOPE = 2 * MAX_EVIDENCE + 64


class Form(Enum):
    """What evidence came in, as people are told."""

    QUOTE = "quote"
    V0 = "attestation, V0 (SCALE)"
    V1 = "attestation, V1 (MessagePack)"
    RATLS_UNIFIED = "RA-TLS certificate, extension .8"
    RATLS_CLASSIC = "RA-TLS certificate, extensions .1 and .2"
    GET_QUOTE = "GetQuote answer"


@dataclass(frozen=True, slots=True)
class Envelope:
    """Evidence and what it came in; nothing of it is verified.

    Attributes:
        form: The envelope.
        evidence: What was in it.
        bound_to: The report data that binds the evidence to the certificate's key; None in other envelopes.
        stated: The report data that the envelope states beside its quote; None where it states none.
        has_log: Whether it brings a log to compare with; a bare quote does not.
    """

    form: Form
    evidence: Evidence
    bound_to: ReportData | None
    stated: ReportData | None
    has_log: bool


def open_envelope(raw: bytes) -> Envelope:
    """Recognise evidence and take it out.

    Raises:
        EvidenceMalformedError: It is none of the envelopes, or one that cannot be read; says which it looked like.
        InputError: A part of it is not of its form.
    """
    if not 0 < len(raw) <= MAX_ENVELOPE:
        raise EvidenceMalformedError(f"evidence: want 1 to {MAX_ENVELOPE} bytes, got {len(raw)}")
    text = raw.strip()
    if text.startswith(_PEM):
        chain = parse_chain(text, what="RA-TLS certificate", error=EvidenceMalformedError)
        return certificate_envelope(der_of(chain[0]))
    if text.startswith(b"{"):
        return _answer(raw)
    if text.isalnum() and text.isascii() and len(text) > 1:
        raw = bytes_from_hex(text.decode(), what="evidence in hexadecimal")
        if not raw:
            raise EvidenceMalformedError("evidence in hexadecimal: want at least one byte, got none")
    if raw[0] == _DER_SEQUENCE:
        return certificate_envelope(raw)
    return _blob(raw)


def certificate_envelope(der: bytes) -> Envelope:
    """The evidence in a certificate, bound to its key.

    Raises:
        EvidenceMalformedError: It carries none, or cannot be read.
    """
    evidence, unified = evidence_from_certificate(der), certificate_form(der)
    if evidence is None:
        raise EvidenceMalformedError("certificate: want evidence in extension .8, or in .1 and .2, got none")
    form, stated = (Form.RATLS_UNIFIED, evidence.report_data) if unified else (Form.RATLS_CLASSIC, None)
    return Envelope(form, evidence, certificate_report_data(der), stated, has_log=True)


def _blob(raw: bytes) -> Envelope:
    if looks_like_quote(raw):
        return Envelope(Form.QUOTE, bare_quote_evidence(raw), None, None, has_log=False)
    evidence = parse_evidence(raw)
    return Envelope(Form.V0 if raw[0] == 0 else Form.V1, evidence, None, evidence.report_data, has_log=True)


def _answer(raw: bytes) -> Envelope:
    """The answer of GetQuote (`quote`, `event_log`, `vm_config`), or of Attest (`attestation`).

    Where both are in one answer, they must be about one quote: people read the one, and the other is verified.
    """
    value = parse_json(raw, what="JSON", limit=MAX_ENVELOPE, error=EvidenceMalformedError)
    answer = Members.of(value, what="JSON", error=EvidenceMalformedError)
    stated = answer.sized("report_data", ReportData) if answer.text("report_data", "") else None
    if answer.has("attestation"):
        envelope = _blob(answer.hexadecimal("attestation"))
        beside = answer.hexadecimal("quote", "") or envelope.evidence.quote
        if beside != envelope.evidence.quote or stated not in (None, envelope.evidence.report_data):
            raise EvidenceMalformedError("JSON: its quote or report data is not that of its attestation")
        return envelope
    if not answer.has("quote"):
        raise EvidenceMalformedError(
            "JSON: want the member 'quote' of a GetQuote answer, or 'attestation', got neither"
        )
    quote = answer.hexadecimal("quote")
    log = answer.text("event_log", "")
    events = parse_event_log(log) if log else ()
    evidence = Evidence(
        quote=quote,
        event_log=events,
        runtime_events=runtime_events(events),
        report_data=stated or parse_quote(quote).report_data,
        config=answer.text("vm_config", ""),
    )
    return Envelope(Form.GET_QUOTE, evidence, None, stated, has_log=bool(log))
