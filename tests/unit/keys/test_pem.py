"""PEM text of certificates and keys."""

from datetime import datetime

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from dstack.errors import KeyMalformedError
from dstack.keys import pem
from dstack.keys.certs import build_root_ca
from dstack.keys.derivation import p256_pkcs8
from dstack.keys.scalars import p256_from_scalar

SCALAR = bytes(31) + b"\x2a"
KEY = p256_from_scalar(SCALAR)


def _pkcs8(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, encryption: object = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )


def test_a_key_survives_its_text() -> None:
    """Scalar, text and scalar again; the text is PKCS#8."""
    text = pem.private_key_pem(KEY)

    assert text.startswith("-----BEGIN PRIVATE KEY-----\n")
    assert pem.p256_scalar(pem.load_private_key(text)) == SCALAR


def test_a_certificate_survives_its_text(at: datetime) -> None:
    """Certificate, text and certificate again; text and bytes are both taken."""
    certificate = build_root_ca(KEY, at=at)
    text = pem.certificate_pem(certificate)

    assert pem.load_certificate(text) == pem.load_certificate(text.encode()) == certificate


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (b"", "want PEM of a key"),
        (p256_pkcs8(SCALAR), "want PEM of a key"),
        (_pkcs8(KEY, serialization.BestAvailableEncryption(b"x")), "want PEM of a key that is not encrypted"),
        (_pkcs8(ec.generate_private_key(ec.SECP384R1())), "want one of the curve P-256"),
        (_pkcs8(ed25519.Ed25519PrivateKey.generate()), "want one of the curve P-256"),
    ],
)
def test_other_keys_are_refused(given: bytes, named: str) -> None:
    """Nothing, DER, an encrypted key, another curve and another algorithm."""
    with pytest.raises(KeyMalformedError, match=named):
        pem.load_private_key(given)


def test_exactly_one_certificate_is_read(at: datetime) -> None:
    """None and two are refused."""
    text = pem.certificate_pem(build_root_ca(KEY, at=at))

    with pytest.raises(KeyMalformedError, match="certificate: want PEM"):
        pem.load_certificate("nothing")
    with pytest.raises(KeyMalformedError, match="certificate: want one, got 2"):
        pem.load_certificate(text * 2)


def test_a_certificate_and_its_key_belong_together(at: datetime) -> None:
    """Another key beside a certificate is noticed."""
    certificate = build_root_ca(KEY, at=at)

    pem.require_key_of(certificate, KEY)
    with pytest.raises(KeyMalformedError, match="not that of the private key beside it"):
        pem.require_key_of(certificate, p256_from_scalar(bytes(31) + b"\x2b"))


def test_every_holder_of_a_public_key_gives_the_same_spki(at: datetime) -> None:
    """A certificate, its private and its public key have one SubjectPublicKeyInfo."""
    spki = pem.spki_der(KEY)

    assert len(spki) == 91
    assert pem.spki_der(build_root_ca(KEY, at=at)) == pem.spki_der(KEY.public_key()) == spki
