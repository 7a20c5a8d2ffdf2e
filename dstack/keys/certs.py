"""The certificates of a KMS and of its callers (kms.md 4.1, 4.2).

One form for all: X.509 v3, ECDSA with SHA-256 over P-256, organisation and common name as UTF8String, a serial number
that follows from the key, no authority key identifier. Evidence travels in extensions of dstack's own OIDs; their
content is a DER OCTET STRING around the payload.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dstack.errors import EvidenceMalformedError, InputError
from dstack.keys.der import octet_string, read_octet_string
from dstack.keys.pem import require_key_of, spki_der
from dstack.keys.scalars import p256_from_scalar
from dstack.values import AppId

__all__ = [
    "OID_APP_ID",
    "OID_APP_INFO",
    "OID_ATTESTATION",
    "OID_CERTIFICATE_USAGE",
    "OID_EVENT_LOG",
    "OID_TDX_QUOTE",
    "USAGE_KMS_RPC",
    "Extension",
    "build_app_ca",
    "build_app_root",
    "build_client_cert",
    "build_root_ca",
    "build_rpc_cert",
    "build_temp_ca",
    "certificate_payload",
    "p256_from_scalar",
    "require_key_of",
    "require_server_name",
    "spki_der",
]

_ARC = "1.3.6.1.4.1.62397.1"
OID_TDX_QUOTE = f"{_ARC}.1"
OID_EVENT_LOG = f"{_ARC}.2"
OID_APP_ID = f"{_ARC}.3"
OID_CERTIFICATE_USAGE = f"{_ARC}.4"
OID_ATTESTATION = f"{_ARC}.8"
OID_APP_INFO = f"{_ARC}.9"

USAGE_KMS_RPC = b"kms:rpc"
_USAGE_APP_CA = b"app:ca"

# Upstream's certificate library lets every certificate begin there.
_NOT_BEFORE = datetime(1975, 1, 1, tzinfo=UTC)
_VALIDITY = timedelta(days=3650)

_SERIAL_SIZE = _KEY_ID_SIZE = 20

# RFC 1035, 2.3.1, digits allowed in front (RFC 1123, 2.1).
_DNS_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

# What a common name holds (RFC 5280, A.1, ub-common-name); DNS itself would allow 253.
_LONGEST_NAME = 64

# An OID and its payload.
Extension = tuple[str, bytes]


def build_root_ca(key: ec.EllipticCurvePrivateKey, *, at: datetime) -> x509.Certificate:
    """The root of a KMS: self-signed, may certify app CAs and servers.

    Args:
        key: P-256, as everywhere in here.
        at: Now; the certificate lasts ten years from then.
    """
    return _self_signed(key, _name("Dstack KMS CA", organization="Dstack"), path_length=1, at=at)


def build_temp_ca(key: ec.EllipticCurvePrivateKey, *, at: datetime) -> x509.Certificate:
    """The authority of client certificates. Its key is given to everyone: being certified by it proves nothing."""
    return _self_signed(key, _name("Dstack Client Temp CA", organization="Dstack"), path_length=0, at=at)


def build_app_root(
    key: ec.EllipticCurvePrivateKey, extensions: Iterable[Extension], *, at: datetime
) -> x509.Certificate:
    """The root of an app whose machine has no KMS: self-signed, with evidence that is bound to its key."""
    return _self_signed(key, _name("App Root Cert"), path_length=1, at=at, extensions=extensions)


def build_app_ca(
    key: ec.EllipticCurvePrivateKey,
    root_cert: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    app_id: AppId,
    *,
    at: datetime,
) -> x509.Certificate:
    """The authority of one app, certified by the root.

    Raises:
        KeyMalformedError: The root's certificate and key do not belong together.
    """
    require_key_of(root_cert, root_key)
    builder = _start(key, _name("Dstack App CA", organization="Dstack"), root_cert.subject, at)
    builder = _as_authority(builder, key, path_length=0)
    payloads = ((OID_APP_ID, bytes(app_id)), (OID_CERTIFICATE_USAGE, _USAGE_APP_CA))
    return _with_payloads(builder, payloads).sign(root_key, hashes.SHA256())


def build_rpc_cert(
    key: ec.EllipticCurvePrivateKey,
    root_cert: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
    domain: str,
    extensions: Iterable[Extension],
    *,
    at: datetime,
) -> x509.Certificate:
    """The server certificate of a KMS.

    Args:
        key: The server's key, which the evidence is bound to.
        root_cert: The root that certifies it.
        root_key: The root's key.
        domain: A DNS name, or an IP address as text.
        extensions: The evidence; the usage `kms:rpc` is put before it.
        at: Now.

    Raises:
        InputError: *domain* is neither a DNS name nor an IP address.
        KeyMalformedError: The root's certificate and key do not belong together.
    """
    require_key_of(root_cert, root_key)
    builder = _start(key, _name(require_server_name(domain)), root_cert.subject, at)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(domain)]), critical=False)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    payloads = ((OID_CERTIFICATE_USAGE, USAGE_KMS_RPC), *extensions)
    return _with_payloads(builder, payloads).sign(root_key, hashes.SHA256())


def build_client_cert(
    key: ec.EllipticCurvePrivateKey,
    temp_ca_cert: x509.Certificate,
    temp_ca_key: ec.EllipticCurvePrivateKey,
    extensions: Iterable[Extension],
    *,
    at: datetime,
) -> x509.Certificate:
    """A caller's certificate, which the caller signs itself with the temp CA's key.

    Args:
        key: The caller's key, which the evidence is bound to.
        temp_ca_cert: As the KMS hands it out.
        temp_ca_key: As the KMS hands it out.
        extensions: The evidence.
        at: Now.

    Raises:
        KeyMalformedError: The temp CA's certificate and key do not belong together.
    """
    require_key_of(temp_ca_cert, temp_ca_key)
    builder = _start(key, _name("RA-TLS TEMP Cert"), temp_ca_cert.subject, at)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    return _with_payloads(builder, extensions).sign(temp_ca_key, hashes.SHA256())


def certificate_payload(certificate: x509.Certificate, oid: str) -> bytes | None:
    """The payload of one of dstack's extensions, or None where the certificate lacks it.

    Does not verify the certificate.

    Raises:
        EvidenceMalformedError: An extension occurs twice, or is not of its form.
    """
    try:
        extension = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid))
    except x509.ExtensionNotFound:
        return None
    except (x509.DuplicateExtension, ValueError) as exc:
        raise EvidenceMalformedError("certificate: an extension occurs twice or is not of its form") from exc
    return read_octet_string(extension.value.public_bytes())


def require_server_name(name: str) -> str:
    """*name*, if a server can be reached under it: an ASCII DNS name, or an IP address as text.

    Raises:
        InputError: It is neither.
    """
    if _ip_address(name) is None and not _is_dns_name(name):
        raise InputError(f"server name: want a DNS name of at most {_LONGEST_NAME} letters or an IP address")
    return name


def _self_signed(
    key: ec.EllipticCurvePrivateKey,
    name: x509.Name,
    *,
    path_length: int,
    at: datetime,
    extensions: Iterable[Extension] = (),
) -> x509.Certificate:
    builder = _as_authority(_start(key, name, name, at), key, path_length)
    return _with_payloads(builder, extensions).sign(key, hashes.SHA256())


def _start(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, at: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(_serial_number(key))
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(at + _VALIDITY)
    )


def _as_authority(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, path_length: int
) -> x509.CertificateBuilder:
    key_id = hashlib.sha256(spki_der(key)).digest()[:_KEY_ID_SIZE]
    return (
        builder.add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(key_id), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    )


def _with_payloads(builder: x509.CertificateBuilder, extensions: Iterable[Extension]) -> x509.CertificateBuilder:
    for oid, payload in extensions:
        value = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), octet_string(payload))
        builder = builder.add_extension(value, critical=False)
    return builder


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


def _name(common_name: str, *, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _serial_number(key: ec.EllipticCurvePrivateKey) -> int:
    """The first 20 bytes of SHA-256(uncompressed point), the top bit cleared: positive, and the same at every issue."""
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    number = int.from_bytes(hashlib.sha256(point).digest()[:_SERIAL_SIZE], "big")
    return number & ~(1 << 8 * _SERIAL_SIZE - 1)


def _general_name(domain: str) -> x509.GeneralName:
    address = _ip_address(domain)
    return x509.DNSName(domain) if address is None else x509.IPAddress(address)


def _ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that *text* is; one with a scope names a network card and is no name of a server."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def _is_dns_name(name: str) -> bool:
    return len(name) <= _LONGEST_NAME and all(_DNS_LABEL.fullmatch(label) for label in name.split("."))
