"""The certificates of a KMS and of its callers (kms.md 4.1, 4.2).

One form for all: X.509 v3, ECDSA with SHA-256 over P-256, organisation and common name as UTF8String, a serial number
that follows from the key, no authority key identifier. Evidence travels in extensions of dstack's own OIDs; their
content is a DER OCTET STRING around the payload.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.errors import EvidenceMalformedError
from dstack.keys.der import read_octet_string
from dstack.keys.pem import require_key_of, spki_der
from dstack.keys.scalars import p256_from_scalar
from dstack.keys.x509_form import (
    VALIDITY,
    Extension,
    as_authority,
    as_end_entity,
    distinguished_name,
    require_server_name,
    server_subject,
    start_certificate,
    with_names,
    with_payloads,
)
from dstack.values import AppId

__all__ = [
    "OID_APP_ID",
    "OID_APP_INFO",
    "OID_ATTESTATION",
    "OID_CERTIFICATE_USAGE",
    "OID_EVENT_LOG",
    "OID_TDX_QUOTE",
    "USAGE_APP_CUSTOM",
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
USAGE_APP_CUSTOM = b"app:custom"
_USAGE_APP_CA = b"app:ca"


def build_root_ca(key: ec.EllipticCurvePrivateKey, *, at: datetime) -> x509.Certificate:
    """The root of a KMS: self-signed, may certify app CAs and servers.

    Args:
        key: P-256, as everywhere in here.
        at: Now; the certificate lasts ten years from then.
    """
    return _self_signed(key, distinguished_name("Dstack KMS CA", organization="Dstack"), path_length=1, at=at)


def build_temp_ca(key: ec.EllipticCurvePrivateKey, *, at: datetime) -> x509.Certificate:
    """The authority of client certificates. Its key is given to everyone: being certified by it proves nothing."""
    return _self_signed(key, distinguished_name("Dstack Client Temp CA", organization="Dstack"), path_length=0, at=at)


def build_app_root(
    key: ec.EllipticCurvePrivateKey, extensions: Iterable[Extension], *, at: datetime
) -> x509.Certificate:
    """The root of an app whose machine has no KMS: self-signed, with evidence that is bound to its key."""
    return _self_signed(key, distinguished_name("App Root Cert"), path_length=1, at=at, extensions=extensions)


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
    builder = _start(key, distinguished_name("Dstack App CA", organization="Dstack"), root_cert.subject, at)
    builder = as_authority(builder, key, path_length=0)
    payloads = ((OID_APP_ID, bytes(app_id)), (OID_CERTIFICATE_USAGE, _USAGE_APP_CA))
    return with_payloads(builder, payloads).sign(root_key, hashes.SHA256())


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
    subject = server_subject(require_server_name(domain))
    builder = _start(key, subject, root_cert.subject, at)
    builder = as_end_entity(with_names(builder, (domain,), subject=subject))
    payloads = ((OID_CERTIFICATE_USAGE, USAGE_KMS_RPC), *extensions)
    return with_payloads(builder, payloads).sign(root_key, hashes.SHA256())


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
    builder = as_end_entity(_start(key, distinguished_name("RA-TLS TEMP Cert"), temp_ca_cert.subject, at))
    return with_payloads(builder, extensions).sign(temp_ca_key, hashes.SHA256())


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


def _self_signed(
    key: ec.EllipticCurvePrivateKey,
    name: x509.Name,
    *,
    path_length: int,
    at: datetime,
    extensions: Iterable[Extension] = (),
) -> x509.Certificate:
    builder = as_authority(_start(key, name, name, at), key, path_length)
    return with_payloads(builder, extensions).sign(key, hashes.SHA256())


def _start(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, at: datetime
) -> x509.CertificateBuilder:
    return start_certificate(key.public_key(), subject, issuer, not_after=at + VALIDITY)
