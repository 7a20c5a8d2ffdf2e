"""Whatever evidence comes in is recognised by its content."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation.envelope import Form, open_envelope
from dstack.attestation.evidence import Evidence, serialise_evidence
from dstack.attestation.evidence_v1 import serialise_evidence_v1
from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.errors import EvidenceMalformedError, InputError, QuoteMalformedError
from dstack.keys.certs import OID_EVENT_LOG, OID_TDX_QUOTE, build_client_cert, build_temp_ca, spki_der
from dstack.measurement.event_log import RuntimeEvent, logged, serialise_event_log
from dstack.simulator.quoting import make_quote
from dstack.values import ReportData

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
APP_ID = RuntimeEvent("app-id", bytes(20))


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    """The key of an RA-TLS certificate."""
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def evidence(pki, registers, key) -> Evidence:
    """Evidence bound to that key."""
    bound = ratls_report_data(spki_der(key))
    quote = make_quote(pki, registers=registers, report_data=bound)
    return Evidence(quote, (logged(APP_ID),), (APP_ID,), bound, "")


def certificate(key, extensions):
    """An RA-TLS certificate over *key*."""
    authority = ec.generate_private_key(ec.SECP256R1())
    return build_client_cert(key, build_temp_ca(authority, at=AT), authority, extensions, at=AT)


def test_each_envelope_is_recognised(evidence, key):
    """The same evidence, in every envelope, is found with its form, its binding and whether a log came along."""
    log = serialise_event_log(evidence.event_log)
    unified = certificate(key, evidence_extensions(evidence))
    classic = certificate(key, [(OID_TDX_QUOTE, evidence.quote), (OID_EVENT_LOG, log.encode())])
    squeezed = certificate(
        key, [(OID_TDX_QUOTE, evidence.quote), (OID_EVENT_LOG, b"ELGZv1" + gzip.compress(log.encode()))]
    )
    answer = {
        "quote": evidence.quote.hex(),
        "event_log": log,
        "report_data": evidence.report_data.hex(),
        "vm_config": "",
    }
    blob = serialise_evidence(evidence)
    cases = [
        (evidence.quote, Form.QUOTE, False),
        (b"0x" + evidence.quote.hex().encode() + b"\n", Form.QUOTE, False),
        (blob, Form.V0, True),
        (blob.hex().encode(), Form.V0, True),
        (serialise_evidence_v1(evidence), Form.V1, True),
        (unified.public_bytes(Encoding.DER), Form.RATLS_UNIFIED, True),
        (unified.public_bytes(Encoding.PEM), Form.RATLS_UNIFIED, True),
        (classic.public_bytes(Encoding.DER), Form.RATLS_CLASSIC, True),
        (squeezed.public_bytes(Encoding.DER), Form.RATLS_CLASSIC, True),
        (json.dumps(answer).encode(), Form.GET_QUOTE, True),
        (json.dumps({"quote": evidence.quote.hex()}).encode(), Form.GET_QUOTE, False),
        (json.dumps({"attestation": blob.hex()}).encode(), Form.V0, True),
    ]
    for raw, form, has_log in cases:
        opened = open_envelope(raw)
        assert (opened.form, opened.has_log) == (form, has_log)
        assert (opened.evidence.quote, opened.evidence.report_data) == (evidence.quote, evidence.report_data)
        assert opened.evidence.runtime_events == ((APP_ID,) if has_log else ())
        in_certificate = form in (Form.RATLS_UNIFIED, Form.RATLS_CLASSIC)
        assert opened.bound_to == (evidence.report_data if in_certificate else None)
        stated = form in (Form.V0, Form.V1, Form.RATLS_UNIFIED) or raw == json.dumps(answer).encode()
        assert opened.stated == (evidence.report_data if stated else None)


def test_an_answer_that_holds_two_quotes_is_refused(evidence, pki, registers):
    """Where quote and attestation come in one answer, both are about the same quote and report data."""
    other = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    answer = {"quote": evidence.quote.hex(), "attestation": serialise_evidence(evidence).hex()}

    assert open_envelope(json.dumps(answer).encode()).evidence == evidence
    for change in ({"quote": other.hex()}, {"report_data": "00" * 64}):
        with pytest.raises(EvidenceMalformedError, match="its quote or report data is not that of its attestation"):
            open_envelope(json.dumps(answer | change).encode())


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b"", EvidenceMalformedError, "want 1 to .* bytes, got 0"),
        (b"hello, world", EvidenceMalformedError, "unknown form, first byte 0x68"),
        (b"abc", InputError, "evidence in hexadecimal"),
        (b"0x", EvidenceMalformedError, "evidence in hexadecimal: want at least one byte"),
        (b"\x30\x00", EvidenceMalformedError, "RA-TLS certificate: want a DER certificate"),
        (b"-----BEGIN CERTIFICATE-----\n", EvidenceMalformedError, "RA-TLS certificate: want PEM certificates"),
        (b'{"a": 1}', EvidenceMalformedError, "want the member 'quote' of a GetQuote answer"),
        (b'{"quote": "00", "quote": "01"}', EvidenceMalformedError, "'quote' appears twice"),
        (bytes.fromhex("0400020081000000"), QuoteMalformedError, "want 1000 to 65536 bytes, got 8"),
        (b"\x04" * 2000, EvidenceMalformedError, "unknown form, first byte 0x04"),
    ],
)
def test_anything_else_is_refused_by_what_it_looks_like(raw, error, message):
    """The error names what the bytes looked like, and what is missing."""
    with pytest.raises(error, match=message):
        open_envelope(raw)


def test_a_certificate_without_evidence_is_refused(key):
    """A certificate that carries none is named as such."""
    with pytest.raises(EvidenceMalformedError, match=r"want evidence in extension \.8, or in \.1 and \.2, got none"):
        open_envelope(certificate(key, []).public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"ELGZv1 no gzip", "want gzip after"),
        (b"ELGZv1" + gzip.compress(bytes(20_000), mtime=0), "at most 16384 bytes inflated"),
        (b"ELGZv1" + gzip.compress(b"[]")[:-1], "want one whole gzip stream"),
        (b"ELGZv1" + gzip.compress(b"[]") + b"x", "want one whole gzip stream"),
    ],
    ids=["no gzip", "a bomb", "cut", "followed"],
)
def test_a_compressed_log_is_bounded(evidence, key, packed, message):
    """A compressed log that is none, cut, followed by something, or larger than 16 KiB inflated is refused."""
    carrier = certificate(key, [(OID_TDX_QUOTE, evidence.quote), (OID_EVENT_LOG, packed)])
    with pytest.raises(EvidenceMalformedError, match=message):
        open_envelope(carrier.public_bytes(Encoding.DER))


def test_golden_certificates_are_opened(shared_vectors):
    """The golden certificates give evidence that is bound to their keys, compressed ones too."""
    golden = json.loads((shared_vectors / "kms" / "certs.json").read_text())
    logs = {}
    for name in ("rpc_unified_ext", "rpc_classic_exts", "rpc_classic_gzip", "ra_client", "leaf"):
        opened = open_envelope(golden[name].encode())
        assert opened.bound_to == opened.evidence.report_data
        logs[name] = opened.evidence.runtime_events
    assert logs["rpc_unified_ext"] == logs["rpc_classic_exts"] == logs["rpc_classic_gzip"]


@given(raw=st.binary(max_size=400))
def test_arbitrary_bytes_raise_our_errors_only(raw):
    """Whatever comes is opened, or refused by an input error."""
    try:
        open_envelope(raw)
    except InputError:
        return
