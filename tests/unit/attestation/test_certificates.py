"""The profile that certificates and CRLs of a chain must meet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dstack.attestation.certificates import (
    common_name,
    parse_certificate,
    parse_chain,
    parse_crl,
    require_authority,
    require_end_entity,
)
from dstack.errors import CollateralMalformedError, EvidenceMalformedError, QuoteMalformedError, QuoteUntrustedError

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
ALL_USAGES = (*USAGES, "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
AUTHORITY = {"key_cert_sign", "crl_sign"}


def certificate(
    *,
    ca: bool = False,
    path_length: int | None = None,
    usage: set[str] | None = None,
    critical: bool = True,
    key=KEY,
    extensions: bool = True,
) -> x509.Certificate:
    """A self-signed certificate, valid one day."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, AT, AT + timedelta(days=1))
    if extensions:
        bits = {bit: bit in (usage or set()) for bit in ALL_USAGES}
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=critical)
        builder = builder.add_extension(x509.KeyUsage(**bits), critical=critical)
    return builder.sign(key, hashes.SHA256())


def test_a_ca_and_an_end_entity_in_order_pass():
    """A CA of the path length asked for, and an end entity that signs data, pass at both ends of their validity."""
    authority = certificate(ca=True, path_length=0, usage=AUTHORITY)
    leaf = certificate(usage={"digital_signature", "content_commitment"})
    for at in (AT, AT + timedelta(days=1), AT + timedelta(days=1, microseconds=999_999)):
        require_authority(authority, path_length=0, at=at, step=7)
        require_end_entity(leaf, at=at, step=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ca": False, "usage": AUTHORITY}, "want a CA of path length 0"),
        ({"ca": True, "path_length": None, "usage": AUTHORITY}, "want a CA of path length 0"),
        ({"ca": True, "path_length": 1, "usage": AUTHORITY}, "want a CA of path length 0"),
        ({"ca": True, "path_length": 0, "usage": {"key_cert_sign"}}, "want key usage certSign and cRLSign"),
        ({"ca": True, "path_length": 0, "usage": {"crl_sign"}}, "want key usage certSign and cRLSign"),
        ({"ca": True, "path_length": 0, "usage": {*AUTHORITY, "digital_signature"}}, "want key usage certSign"),
        ({"ca": True, "path_length": 0, "usage": AUTHORITY, "critical": False}, "want critical basic constraints"),
        ({"extensions": False}, "want basic constraints and key usage"),
        ({"ca": True, "path_length": 0, "key": ec.generate_private_key(ec.SECP384R1())}, "want a P-256 key"),
        ({"ca": True, "path_length": 0, "key": rsa.generate_private_key(65537, 2048)}, "want a P-256 key"),
    ],
)
def test_another_authority_is_refused(settings, message):
    """A CA that may do more, or less, than Intel's may is refused at the step that asked."""
    with pytest.raises(QuoteUntrustedError, match=f"step 4: certificate 'Test': {message}"):
        require_authority(certificate(**settings), path_length=0, at=AT, step=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ca": True, "path_length": 0, "usage": {"digital_signature"}}, "want an end entity, got a CA"),
        ({"usage": {"content_commitment"}}, "want key usage digitalSignature"),
        ({"usage": {"digital_signature", "key_cert_sign"}}, "want key usage digitalSignature, without certSign"),
        ({"usage": {"digital_signature", "crl_sign"}}, "want key usage digitalSignature, without certSign"),
        ({"usage": {"digital_signature"}, "critical": False}, "want critical basic constraints and key usage"),
        ({"extensions": False}, "want basic constraints and key usage"),
    ],
)
def test_another_end_entity_is_refused(settings, message):
    """An end entity that may sign certificates, or no data, is refused at the step that asked."""
    with pytest.raises(QuoteUntrustedError, match=f"step 5: certificate 'Test': {message}"):
        require_end_entity(certificate(**settings), at=AT, step=5)


def test_outside_its_validity_a_certificate_is_refused():
    """A second before its validity, and a second after its last one, a certificate is refused."""
    leaf = certificate(usage={"digital_signature"})
    for at in (AT - timedelta(seconds=1), AT + timedelta(days=1, seconds=1)):
        with pytest.raises(QuoteUntrustedError, match=r"step 7: certificate 'Test': valid .* not at"):
            require_end_entity(leaf, at=at, step=7)


def test_a_name_with_two_cns_has_none():
    """A subject with two CNs plays no role, whichever of them fits; one without plays none either."""
    one, two = (x509.NameAttribute(x509.NameOID.COMMON_NAME, text) for text in ("one", "two"))

    assert common_name(x509.Name([one])) == "one"
    assert common_name(x509.Name([one, two])) == common_name(x509.Name([])) == ""


def test_sizes_are_bounded():
    """A chain above 16 KiB and a CRL above 1 MiB are refused unread, by the error the caller chose."""
    with pytest.raises(QuoteMalformedError, match=r"chain: want at most 16384 bytes, got 16385"):
        parse_chain(bytes(16 * 1024 + 1), what="chain", error=QuoteMalformedError)
    with pytest.raises(CollateralMalformedError, match=r"CRL: want at most 1048576 bytes, got 1048577"):
        parse_crl(bytes(1024 * 1024 + 1), what="CRL")


def test_what_cannot_be_read_is_the_callers_error():
    """Bytes that are no certificate raise the error that the caller chose."""
    with pytest.raises(EvidenceMalformedError, match=r"leaf: want a DER certificate, got 3 bytes that are not"):
        parse_certificate(b"abc", what="leaf", error=EvidenceMalformedError)
