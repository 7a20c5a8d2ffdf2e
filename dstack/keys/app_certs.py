"""Certificates that an app's authority signs for the app's own use (kms.md 4.2, the leaf of SignCert)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from dstack.errors import InputError
from dstack.keys.certs import OID_APP_ID, OID_APP_INFO, OID_ATTESTATION, OID_CERTIFICATE_USAGE, USAGE_APP_CUSTOM
from dstack.keys.pem import require_key_of
from dstack.keys.x509_form import (
    LONGEST_COMMON_NAME,
    NOT_BEFORE,
    VALIDITY,
    as_end_entity,
    distinguished_name,
    start_certificate,
    with_names,
    with_payloads,
)
from dstack.values import AppId

# Names that are looked up may have underscores, and a star for one label (RFC 6125, 6.4.3); colons are of addresses.
_ALTERNATIVE_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9_:](?:[A-Za-z0-9_.:-]{0,249}[A-Za-z0-9_:])?")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# RFC 5280, 4.1.2.5: the last second that a certificate can name.
_LAST = 253402300799


@dataclass(frozen=True, slots=True)
class CertificateWishes:
    """What an app wants in a certificate; times in seconds since 1970, None for the signer's choice.

    Nothing in it is proven: whoever may have a certificate of an app may choose its names.

    Attributes:
        org_name: The organisation.
        subject: The common name.
        subject_alt_names: DNS names, and IP addresses as text.
        usage_server_auth: Usable by TLS servers.
        usage_client_auth: Usable by TLS clients.
        ext_quote: With the evidence of the machine that asks.
        ext_app_info: With the app info of the machine that asks.
    """

    org_name: str | None
    subject: str
    subject_alt_names: tuple[str, ...]
    usage_server_auth: bool
    usage_client_auth: bool
    ext_quote: bool
    ext_app_info: bool = False
    not_before: int | None = None
    not_after: int | None = None


def build_app_leaf(
    public_key: ec.EllipticCurvePublicKey,
    app_ca: x509.Certificate,
    app_ca_key: ec.EllipticCurvePrivateKey,
    app_id: AppId,
    wishes: CertificateWishes,
    *,
    at: datetime,
    app_info: bytes | None = None,
    attestation: bytes | None = None,
) -> x509.Certificate:
    """A certificate for an app's own use.

    Args:
        public_key: P-256; who asks has shown that they hold the private key.
        app_ca: The app's authority.
        app_ca_key: Its key.
        app_id: The app.
        wishes: Names, times and purposes.
        at: Now; it lasts ten years from then unless *wishes* say otherwise.
        app_info: Payload of that extension; None to leave it out.
        attestation: Payload of that extension; None to leave it out.

    Raises:
        InputError: A name or a time that a certificate cannot hold.
        KeyMalformedError: The authority's certificate and key do not belong together.
    """
    require_key_of(app_ca, app_ca_key)
    not_before, not_after = _validity(wishes, at)
    subject = distinguished_name(
        _short(wishes.subject, "subject"), organization=_short(wishes.org_name or "", "org_name")
    )
    builder = start_certificate(public_key, subject, app_ca.subject, not_before=not_before, not_after=not_after)
    builder = as_end_entity(with_names(builder, map(_alternative_name, wishes.subject_alt_names), subject=subject))
    builder = _with_purposes(builder, wishes)
    payloads = (
        (OID_APP_ID, bytes(app_id)),
        (OID_APP_INFO, app_info),
        (OID_CERTIFICATE_USAGE, USAGE_APP_CUSTOM),
        (OID_ATTESTATION, attestation),
    )
    present = [(oid, payload) for oid, payload in payloads if payload is not None]
    return with_payloads(builder, present).sign(app_ca_key, hashes.SHA256())


def _validity(wishes: CertificateWishes, at: datetime) -> tuple[datetime, datetime]:
    not_before = NOT_BEFORE if wishes.not_before is None else _moment(wishes.not_before, "not_before")
    not_after = at + VALIDITY if wishes.not_after is None else _moment(wishes.not_after, "not_after")
    if not_before >= not_after:
        raise InputError("not_before must be earlier than not_after")
    return not_before, not_after


def _moment(seconds: int, what: str) -> datetime:
    if not 0 <= seconds <= _LAST:
        raise InputError(f"{what}: want 0 to {_LAST} seconds since 1970, got {seconds}")
    return _EPOCH + timedelta(seconds=seconds)


def _short(text: str, what: str) -> str:
    if len(text.encode()) > LONGEST_COMMON_NAME:
        raise InputError(f"{what}: want at most {LONGEST_COMMON_NAME} bytes, got {len(text.encode())}")
    return text


def _alternative_name(name: str) -> str:
    if _ALTERNATIVE_NAME.fullmatch(name) is None:
        raise InputError(f"subject_alt_names: want a DNS name or an IP address, got {name[:80]!r}")
    return name


def _with_purposes(builder: x509.CertificateBuilder, wishes: CertificateWishes) -> x509.CertificateBuilder:
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] if wishes.usage_server_auth else []
    purposes += [ExtendedKeyUsageOID.CLIENT_AUTH] if wishes.usage_client_auth else []
    return builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False) if purposes else builder
