"""The SGX extension of PCK certificates, and the DER below it: step 8."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation import der
from dstack.attestation.pck import SGX_EXTENSION, PckExtension, claimed_platform, parse_pck_extension
from dstack.attestation.quote import parse_quote
from dstack.errors import CollateralMalformedError, QuoteMalformedError
from dstack.simulator.certificates import serialise_pck_extension

PLATFORM = PckExtension(
    ppid=bytes(range(16)),
    cpu_svn=bytes(range(100, 116)),
    pce_svn=0x1234,
    pce_id=b"\x00\x01",
    fmspc=b"\x50\x80\x6f\x00\x00\x00",
    sgx_type=1,
    platform_instance_id=bytes(16),
)


def certificate(pki, *extensions: bytes) -> x509.Certificate:
    """The PCK certificate's key in a certificate with these SGX extensions."""
    builder = x509.CertificateBuilder(
        pki.pck.issuer,
        pki.pck.subject,
        pki.pck.public_key(),
        7,
        pki.pck.not_valid_before_utc,
        pki.pck.not_valid_after_utc,
    )
    for number, extension in enumerate(extensions):
        # The builder refuses an OID twice: the second gets a sibling's, which is patched below.
        oid = SGX_EXTENSION if number == 0 else x509.ObjectIdentifier(f"{SGX_EXTENSION.dotted_string[:-1]}2")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), critical=False)
    return builder.sign(pki.keys.pck_authority, hashes.SHA256())


@pytest.mark.parametrize("name", ["intel-tdx-v4-uptodate", "intel-sgx-v3-hardening", "intel-tdx-v5-below-lowest-level"])
def test_real_certificates_name_the_recorded_platform(quotes, name):
    """Every recorded field of a real PCK certificate is read."""
    expected = json.loads((quotes / name / "expect.json").read_text())["pck"]

    platform = claimed_platform(parse_quote((quotes / name / "quote.bin").read_bytes()))

    # Only certificates of the platform CA have it.
    cached_keys = name == "intel-tdx-v4-uptodate"
    multi_package = {"dynamic_platform": True, "cached_keys": cached_keys, "smt_enabled": True}
    configuration = multi_package if expected["platform_instance_id"] else {}
    assert platform == PckExtension(
        ppid=bytes.fromhex(expected["ppid"]),
        cpu_svn=bytes.fromhex(expected["cpu_svn"]),
        pce_svn=expected["pce_svn"],
        pce_id=bytes.fromhex(expected["pce_id"]),
        fmspc=bytes.fromhex(expected["fmspc"]),
        sgx_type=expected["sgx_type"],
        platform_instance_id=expected["platform_instance_id"] and bytes.fromhex(expected["platform_instance_id"]),
        **configuration,
    )


@pytest.mark.parametrize("platform", [PLATFORM, replace(PLATFORM, platform_instance_id=None, pce_svn=0)])
def test_parsing_undoes_writing(pki, platform):
    """An extension that the simulator writes is read as the same platform."""
    assert parse_pck_extension(certificate(pki, serialise_pck_extension(platform))) == platform


@pytest.mark.parametrize(
    ("field", "value"),
    [("ppid", bytes(15)), ("cpu_svn", bytes(15)), ("pce_id", bytes(3)), ("fmspc", bytes(5))],
)
def test_step_8_a_field_of_another_length_is_refused(pki, field, value):
    """A field of another length is refused, and the error says which length was wanted."""
    extension = serialise_pck_extension(replace(PLATFORM, **{field: value}))
    with pytest.raises(CollateralMalformedError, match=rf"SGX extension: want \d+ bytes in .*got {len(value)}"):
        parse_pck_extension(certificate(pki, extension))


def test_step_8_no_extension_is_refused(pki):
    """A certificate without the SGX extension is refused."""
    with pytest.raises(CollateralMalformedError, match="want exactly one readable SGX extension"):
        parse_pck_extension(certificate(pki))


def test_step_8_two_extensions_are_refused(pki):
    """A certificate with two SGX extensions is refused, whichever would have been the better."""
    extension = serialise_pck_extension(PLATFORM)
    raw = certificate(pki, extension, extension).public_bytes(Encoding.DER)
    twice = x509.load_der_x509_certificate(raw.replace(_OTHER_OID, _SGX_OID))
    with pytest.raises(CollateralMalformedError, match="want exactly one readable SGX extension"):
        parse_pck_extension(twice)


@pytest.mark.parametrize(
    "extension",
    [
        b"",
        b"\x30",
        b"\x30\x00",
        b"\x04\x00",
        serialise_pck_extension(PLATFORM) + b"\x30\x00",
        serialise_pck_extension(PLATFORM)[:-1],
        b"\x30\x80" + serialise_pck_extension(PLATFORM)[2:],
    ],
)
def test_step_8_other_der_is_refused(pki, extension):
    """An extension that is cut short, followed by more, or not a sequence of pairs is refused."""
    with pytest.raises(CollateralMalformedError, match=r"DER|SGX extension"):
        parse_pck_extension(certificate(pki, extension))


def test_step_8_a_repeated_field_is_refused(pki):
    """A field that appears twice is refused: which of them counts must not depend on the reader."""
    fields = b"".join(_pair(n, content) for n, content in der.sequence(serialise_pck_extension(PLATFORM)))
    repeated = fields + _pair(*der.sequence(serialise_pck_extension(PLATFORM))[0])
    with pytest.raises(CollateralMalformedError, match="appears twice"):
        parse_pck_extension(certificate(pki, b"\x30\x82" + len(repeated).to_bytes(2, "big") + repeated))


@pytest.mark.parametrize("value", ["020400000001", "0201ff", "0200"])
def test_step_8_numbers_are_small_and_not_negative(pki, value):
    """A PCESVN that is empty, negative or longer than any real one is refused."""
    tcb = der.sequence(serialise_pck_extension(PLATFORM))[1][1]
    number = _pair(0x30, bytes.fromhex("060b2a864886f84d010d010211") + bytes.fromhex(value))
    levels = der.sequence(tcb[12:])
    others = b"".join(_pair(*level) for level in levels[:16]) + number + _pair(*levels[17])
    changed = _pair(0x30, tcb[:12] + _pair(0x30, others))
    fields = der.sequence(serialise_pck_extension(PLATFORM))
    extension = _pair(0x30, _pair(*fields[0]) + changed + b"".join(_pair(*field) for field in fields[2:]))
    with pytest.raises(CollateralMalformedError, match=r"want a small number that is not negative"):
        parse_pck_extension(certificate(pki, extension))


@pytest.mark.parametrize("field", ["300c060a2a864886f84d010d0101", "30060401000401ff", "0401ff"])
def test_step_8_fields_are_pairs_of_name_and_value(pki, field):
    """A field without value, without an OID, or that is no sequence is refused."""
    with pytest.raises(CollateralMalformedError, match=r"want a sequence of \(OID, value\) pairs"):
        parse_pck_extension(certificate(pki, _pair(0x30, bytes.fromhex(field))))


def test_a_chain_that_cannot_be_read_is_the_quotes_fault(quotes):
    """The platform of a quote with unreadable certificates is refused as a malformed quote."""
    raw = (quotes / "intel-tdx-v4-uptodate" / "quote.bin").read_bytes()
    quote = parse_quote(raw.replace(b"-----BEGIN CERTIFICATE-----\nMII", b"-----BEGIN CERTIFICATE-----\nAAA", 1))
    with pytest.raises(QuoteMalformedError, match="PCK chain: want PEM certificates"):
        claimed_platform(quote)


@given(content=st.binary(max_size=80))
def test_der_raises_nothing_but_our_error(content):
    """Any bytes are either read to their end or refused by our error."""
    try:
        parts = list(der.elements(content))
    except CollateralMalformedError:
        return
    assert all(0 <= tag < 256 for tag, _ in parts)


@pytest.mark.parametrize(("content", "dotted"), [("2a864886f84d010d01", "1.2.840.113741.1.13.1"), ("8837", "2.999")])
def test_object_identifiers(content, dotted):
    """Arcs of several bytes and the joint first two arcs are read."""
    assert der.object_id(bytes.fromhex(content)) == dotted


@pytest.mark.parametrize("content", ["", "2a86"])
def test_an_object_identifier_that_is_cut_short_is_refused(content):
    """An empty identifier, or one that ends inside an arc, is refused."""
    with pytest.raises(CollateralMalformedError, match="object identifier is cut short"):
        der.object_id(bytes.fromhex(content))


@pytest.mark.parametrize("raw", ["04817f" + "00" * 127, "0482007f" + "00" * 127, "0480", "0483000000"])
def test_der_lengths_have_one_form(raw):
    """A length that is not in its shortest form, is indefinite, or takes three bytes is refused."""
    with pytest.raises(CollateralMalformedError, match=r"DER: .*length"):
        list(der.elements(bytes.fromhex(raw)))


_SGX_OID = bytes.fromhex("2a864886f84d010d01")
_OTHER_OID = bytes.fromhex("2a864886f84d010d02")


def _pair(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")) + content
