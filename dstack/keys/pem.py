"""Certificates and keys as PEM text, and whether they belong together."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.errors import KeyMalformedError
from dstack.keys.scalars import SCALAR_SIZE

Keyed = x509.Certificate | ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey


def certificate_pem(certificate: x509.Certificate) -> str:
    """The PEM text of a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The PKCS#8 PEM text of a private key, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def load_certificate(pem: str | bytes) -> x509.Certificate:
    """Read the one certificate that *pem* holds.

    Raises:
        KeyMalformedError: It holds none, or several, or something else.
    """
    try:
        certificates = x509.load_pem_x509_certificates(_as_bytes(pem))
    except ValueError as exc:
        raise KeyMalformedError("certificate: want PEM") from exc
    if len(certificates) != 1:
        raise KeyMalformedError(f"certificate: want one, got {len(certificates)}")
    return certificates[0]


def load_private_key(pem: str | bytes) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key that is not encrypted.

    Raises:
        KeyMalformedError: *pem* is not such a key.
    """
    try:
        key = serialization.load_pem_private_key(_as_bytes(pem), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise KeyMalformedError("private key: want PEM of a key that is not encrypted") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise KeyMalformedError("private key: want one of the curve P-256")
    return key


def p256_scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private scalar of a P-256 key, 32 bytes."""
    return key.private_numbers().private_value.to_bytes(SCALAR_SIZE, "big")


def spki_der(source: Keyed) -> bytes:
    """The SubjectPublicKeyInfo of a certificate, a private or a public key, as DER."""
    public = source if isinstance(source, ec.EllipticCurvePublicKey) else source.public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def require_key_of(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """Refuse a certificate and a private key that do not belong together.

    Raises:
        KeyMalformedError: They do not.
    """
    if spki_der(certificate) != spki_der(key):
        raise KeyMalformedError("certificate: its public key is not that of the private key beside it")


def _as_bytes(pem: str | bytes) -> bytes:
    return pem.encode() if isinstance(pem, str) else pem
