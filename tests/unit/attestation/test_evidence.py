"""The attestation blob, its SCALE coding, and evidence in certificates."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation import scale
from dstack.attestation.cursor import Cursor
from dstack.attestation.evidence import MAX_EVIDENCE, Evidence, parse_evidence, serialise_evidence, strip_evidence
from dstack.attestation.ratls import (
    bound_evidence,
    certificate_report_data,
    evidence_extensions,
    evidence_from_certificate,
)
from dstack.attestation.report_data import ratls_report_data
from dstack.errors import EvidenceMalformedError, InputError
from dstack.keys.certs import OID_EVENT_LOG, OID_TDX_QUOTE, build_client_cert, build_temp_ca, spki_der
from dstack.measurement.event_log import Event, RuntimeEvent, logged, serialise_event_log
from dstack.simulator.quoting import make_quote
from dstack.values import ReportData

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
APP_ID = RuntimeEvent("app-id", bytes(20))
LOG = (
    Event(0, 0x80000001, bytes(48), "", b"a detail"),
    Event(0, 10, b"\x01" * 48, "acpi-loader", b"ACPI DATA"),
    Event(1, 10, b"\x02" * 48, "", b"ACPI DATA"),
    logged(APP_ID),
)
EVIDENCE = Evidence(b"a quote", LOG, (APP_ID,), ReportData(bytes(range(64))), '{"é":1}')


def test_golden_evidence_is_read_and_written(shared_vectors):
    """Each golden blob is read, written back to the same bytes, and stripped to the golden stripped bytes."""
    for case in json.loads((shared_vectors / "kms" / "attestation.json").read_text())["cases"]:
        raw = bytes.fromhex(case["v0_scale_hex"])

        evidence = parse_evidence(raw)

        assert evidence.quote.hex() == case["quote_hex"]
        assert evidence.report_data.hex() == case["report_data"]
        assert evidence.config == case["config"]
        assert [(event.name, event.payload.hex()) for event in evidence.runtime_events] == [
            (event["event"], event["payload"]) for event in case["runtime_events"]
        ]
        assert serialise_evidence(evidence) == raw
        assert serialise_evidence(strip_evidence(evidence)).hex() == case["v0_scale_stripped_hex"]


def test_a_real_guests_evidence_is_read_and_written(shared_vectors):
    """The blob of a real guest is read to its last byte and written back."""
    raw = (shared_vectors / "guest" / "fixtures" / "simulator-attestation.bin").read_bytes()

    assert serialise_evidence(parse_evidence(raw)) == raw


def test_parsing_undoes_writing():
    """What is written is read back, boot events, payloads and non-ASCII config included."""
    assert parse_evidence(serialise_evidence(EVIDENCE)) == EVIDENCE


def test_stripping_keeps_what_appraisal_needs():
    """Stripped evidence keeps runtime events without digest and RTMR0's ACPI events with theirs, and nothing else."""
    stripped = strip_evidence(EVIDENCE)

    assert stripped == replace(EVIDENCE, event_log=(LOG[1], replace(LOG[3], digest=b"")))
    assert strip_evidence(stripped) == stripped


@given(data=st.data())
def test_every_truncation_is_refused(data):
    """Cut anywhere, a blob is refused."""
    raw = serialise_evidence(EVIDENCE)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(EvidenceMalformedError, match=r"want|are left"):
        parse_evidence(raw[:cut])


@given(rest=st.binary(max_size=300))
def test_arbitrary_blobs_raise_our_errors_only(rest):
    """Whatever follows the first two bytes is read, or refused by an input error."""
    try:
        parse_evidence(b"\0\0" + rest)
    except InputError:
        return


def test_trailing_bytes_are_refused():
    """A blob with a byte more is refused."""
    with pytest.raises(EvidenceMalformedError, match=r"evidence: 1 unexpected bytes"):
        parse_evidence(serialise_evidence(EVIDENCE) + b"\0")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "want 1 to 10485760 bytes, got 0"),
        (bytes(MAX_EVIDENCE + 1), "want 1 to 10485760 bytes, got 10485761"),
        (b"\x83\xa7version", r"want one bounded MessagePack value"),
        (b"\x01", "unknown form, first byte 0x01"),
        (b"\0\x03", r"want platform 0 \(TDX\), got 3"),
        (b"\0\0\x02\0\0\x80", "quote: want 536870912 more, 0 bytes are left"),
        (b"\0\0\0\xfe\xff\xff\xff", "event log: want .* more, 0 bytes are left"),
    ],
)
def test_other_forms_are_refused(raw, message):
    """Another size, form or platform, and lengths beyond the input, are refused before anything is allocated."""
    with pytest.raises(EvidenceMalformedError, match=message):
        parse_evidence(raw)


def test_more_events_than_a_log_holds_are_refused():
    """A count above 4096 events is refused, even where the bytes would be there."""
    with pytest.raises(EvidenceMalformedError, match=r"event log: want at most 4096 events, got 4097"):
        parse_evidence(b"\0\0\0" + scale.write_length(4097) + bytes(5000))


def test_text_is_utf8():
    """A config that is not UTF-8 is refused."""
    raw = serialise_evidence(replace(EVIDENCE, config="ab"))
    with pytest.raises(EvidenceMalformedError, match=r"config: want UTF-8"):
        parse_evidence(raw[:-2] + b"\xff\xff")


def test_events_of_version_2_cannot_be_written():
    """The V0 form has no room for an event's version, so writing one is refused rather than changed."""
    event = RuntimeEvent("app-id", bytes(20), version=2)
    for evidence in (replace(EVIDENCE, runtime_events=(event,)), replace(EVIDENCE, event_log=(logged(event),))):
        with pytest.raises(EvidenceMalformedError, match=r"cannot carry an event of version 2"):
            serialise_evidence(evidence)


def test_a_bare_quote_is_taken_as_evidence(pki, registers):
    """A bare TDX quote is evidence without log and config, with the report data it carries."""
    quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(range(64))))

    assert parse_evidence(quote) == Evidence(quote, (), (), ReportData(bytes(range(64))), "")


@given(length=st.integers(0, 2**30 - 1))
def test_scale_lengths_round_trip(length):
    """Every length is written in its shortest form and read back, when that much follows."""
    cursor = Cursor(scale.write_length(length), EvidenceMalformedError)
    if length == 0:
        assert scale.read_length(cursor, "x") == 0
        return
    with pytest.raises(EvidenceMalformedError, match=rf"x: want {length} more, 0 bytes are left"):
        scale.read_length(cursor, "x")


@pytest.mark.parametrize("raw", ["0100", "fd00", "02000000", "feff0000"])
def test_scale_lengths_have_one_form(raw):
    """A length in a longer form than needed is refused: one evidence has one encoding."""
    with pytest.raises(EvidenceMalformedError, match=r"not in its shortest form"):
        scale.read_length(Cursor(bytes.fromhex(raw) + bytes(70000), EvidenceMalformedError), "x")


@pytest.mark.parametrize("raw", ["03", "0300000001"])
def test_scale_big_lengths_are_refused(raw):
    """The form for lengths of 2^30 and more is refused."""
    with pytest.raises(EvidenceMalformedError, match=r"want a length below 2\^30"):
        scale.read_length(Cursor(bytes.fromhex(raw), EvidenceMalformedError), "x")
    with pytest.raises(EvidenceMalformedError, match=r"want one below 2\^30"):
        scale.write_length(2**30)


def client_certificate(extensions) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A client certificate with these extensions, and its key."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    certificate = build_client_cert(key, build_temp_ca(ca_key, at=AT), ca_key, extensions, at=AT)
    return certificate.public_bytes(Encoding.DER), key


def test_certificates_carry_stripped_evidence():
    """Evidence put into a certificate comes back stripped; the binding is over the certificate's key."""
    der, key = client_certificate(evidence_extensions(EVIDENCE))

    assert evidence_from_certificate(der) == strip_evidence(EVIDENCE)
    assert certificate_report_data(der) == ratls_report_data(spki_der(key))
    assert bound_evidence(der) == (strip_evidence(EVIDENCE), ratls_report_data(spki_der(key)))


def test_a_certificate_without_evidence_has_none():
    """A certificate without our extensions carries no evidence, which is not an error."""
    der, _ = client_certificate([])

    assert (evidence_from_certificate(der), bound_evidence(der)) == (None, None)


def test_the_classic_pair_is_read(pki, registers):
    """Quote and JSON log in their own extensions are evidence, with the report data of the quote and no config."""
    quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(range(64))))
    log = serialise_event_log(LOG).encode()
    der, _ = client_certificate([(OID_TDX_QUOTE, quote), (OID_EVENT_LOG, log)])

    assert evidence_from_certificate(der) == Evidence(quote, LOG, (APP_ID,), ReportData(bytes(range(64))), "")


def test_the_unified_extension_wins():
    """Where both forms are there, the classic pair is not looked at."""
    der, _ = client_certificate([*evidence_extensions(EVIDENCE), (OID_TDX_QUOTE, b"junk")])

    assert evidence_from_certificate(der) == strip_evidence(EVIDENCE)


def test_a_classic_quote_needs_its_log(pki, registers):
    """A quote extension without the log extension is refused, not read as evidence without events."""
    quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    with pytest.raises(EvidenceMalformedError, match=r"it carries a quote and no event log"):
        evidence_from_certificate(client_certificate([(OID_TDX_QUOTE, quote)])[0])


def test_what_is_no_certificate_is_refused():
    """Bytes that are no certificate are malformed evidence."""
    for read in (evidence_from_certificate, certificate_report_data, bound_evidence):
        with pytest.raises(EvidenceMalformedError, match=r"RA-TLS certificate: want a DER certificate"):
            read(b"\x30\x00")
