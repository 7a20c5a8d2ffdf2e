"""The form that all certificates of a KMS and of its callers share (kms.md 4.2)."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dstack.errors import InputError
from dstack.keys.der import octet_string
from dstack.keys.pem import spki_der

# Upstream's certificate library lets every certificate begin there.
NOT_BEFORE = datetime(1975, 1, 1, tzinfo=UTC)
VALIDITY = timedelta(days=3650)

# What a common name holds (RFC 5280, A.1, ub-common-name).
LONGEST_COMMON_NAME = 64

_SERIAL_SIZE = _KEY_ID_SIZE = 20

# RFC 1035, 2.3.1, digits allowed in front (RFC 1123, 2.1).
_DNS_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

# RFC 1035, 2.3.4, without the root's dot.
_LONGEST_DNS_NAME = 253

# An OID and its payload.
Extension = tuple[str, bytes]


def start_certificate(
    public_key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    *,
    not_before: datetime = NOT_BEFORE,
    not_after: datetime,
) -> x509.CertificateBuilder:
    """Everything that every certificate has."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(_serial_number(public_key))
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def as_authority(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, path_length: int
) -> x509.CertificateBuilder:
    """Add what an authority has."""
    key_id = hashlib.sha256(spki_der(key)).digest()[:_KEY_ID_SIZE]
    return (
        builder.add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(key_id), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    )


def as_end_entity(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    """Add what a certificate has that certifies nothing."""
    return builder.add_extension(_key_usage(authority=False), critical=True)


def with_payloads(builder: x509.CertificateBuilder, extensions: Iterable[Extension]) -> x509.CertificateBuilder:
    """Add extensions of dstack's own, in that order."""
    for oid, payload in extensions:
        value = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), octet_string(payload))
        builder = builder.add_extension(value, critical=False)
    return builder


def with_names(
    builder: x509.CertificateBuilder, names: Iterable[str], *, subject: x509.Name
) -> x509.CertificateBuilder:
    """Add alternative names, if there are any: DNS names, and IP addresses as text.

    Where *subject* is empty they alone name the holder, and are critical (RFC 5280, 4.2.1.6): Java reads no other form.
    """
    general = [_general_name(name) for name in names]
    is_alone = len(subject) == 0
    return builder.add_extension(x509.SubjectAlternativeName(general), critical=is_alone) if general else builder


def distinguished_name(common_name: str, *, organization: str | None = None) -> x509.Name:
    """Organisation, then common name; a part that is empty is left out."""
    parts = ((NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common_name))
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])


def server_subject(name: str) -> x509.Name:
    """The subject of a server's certificate: its name, if a common name can hold it. Clients read alternative names."""
    return distinguished_name(name if len(name) <= LONGEST_COMMON_NAME else "")


def require_server_name(name: str) -> str:
    """*name*, if a server can be reached under it: an ASCII DNS name, or an IP address as text.

    Raises:
        InputError: It is neither.
    """
    if _ip_address(name) is None and not _is_dns_name(name):
        raise InputError(
            f"server name: want a DNS name of at most {_LONGEST_DNS_NAME} letters, each label 1 to 63 of A-Z, a-z, 0-9 "
            "and inner hyphens, or an IP address"
        )
    return name


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _serial_number(key: ec.EllipticCurvePublicKey) -> int:
    """The first 20 bytes of SHA-256(uncompressed point), the top bit cleared: positive, and the same at every issue."""
    point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    number = int.from_bytes(hashlib.sha256(point).digest()[:_SERIAL_SIZE], "big")
    return number & ~(1 << 8 * _SERIAL_SIZE - 1)


def _general_name(name: str) -> x509.GeneralName:
    address = _ip_address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that *text* is; one with a scope names a network card and is no name of a server."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_dns_name(name: str) -> bool:
    return len(name) <= _LONGEST_DNS_NAME and all(_DNS_LABEL.fullmatch(label) for label in name.split("."))
