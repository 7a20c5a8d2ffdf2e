"""X.509 as Intel's chains use it: parsing, and the profile each certificate and CRL must meet.

Every check raises `QuoteUntrustedError` with the step (of `docs/verification-steps.md`) that the caller names.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.content_cache import Period
from dstack.errors import CollateralMalformedError, InputError, QuoteUntrustedError

_MAX_CHAIN = 16 * 1024
_MAX_CRL = 1024 * 1024
_COORDINATE = 32
_ECDSA = ec.ECDSA(hashes.SHA256())

# What the parsers of `cryptography` raise on bytes they do not like; `extensions` is parsed lazily.
_PARSE_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def parse_chain(
    pem: bytes, *, what: str, error: type[InputError] = CollateralMalformedError
) -> tuple[x509.Certificate, ...]:
    """Read concatenated PEM certificates, optionally ended by one NUL byte. Establishes no trust.

    Raises:
        CollateralMalformedError: (or *error*) There is none, or one of them cannot be read.
    """
    if len(pem) > _MAX_CHAIN:
        raise error(f"{what}: want at most {_MAX_CHAIN} bytes, got {len(pem)}")
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem.removesuffix(b"\0")))
        for certificate in chain:
            _ = certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer
            _require_whole_octets(der_of(certificate), certificate.signature)
    except x509.DuplicateExtension as exc:
        raise error(f"{what}: a certificate has the extension {exc.oid.dotted_string} twice") from exc
    except _PARSE_ERRORS as exc:
        raise error(f"{what}: want PEM certificates, got {len(pem)} bytes that are not") from exc
    return chain


def parse_certificate(raw: bytes, *, what: str, error: type[InputError] = CollateralMalformedError) -> x509.Certificate:
    """Read one DER certificate. Establishes no trust.

    Raises:
        CollateralMalformedError: (or *error*) *raw* is not one.
    """
    try:
        certificate = x509.load_der_x509_certificate(raw)
        _ = certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer
        _require_whole_octets(raw, certificate.signature)
    except _PARSE_ERRORS as exc:
        raise error(f"{what}: want a DER certificate, got {len(raw)} bytes that are not") from exc
    return certificate


def parse_crl(raw: bytes, *, what: str) -> x509.CertificateRevocationList:
    """Read a DER revocation list, every entry of it. Establishes no trust.

    Raises:
        CollateralMalformedError: *raw* is not one.
    """
    if len(raw) > _MAX_CRL:
        raise CollateralMalformedError(f"{what}: want at most {_MAX_CRL} bytes, got {len(raw)}")
    try:
        crl = x509.load_der_x509_crl(raw)
        _ = crl.extensions, crl.issuer, crl.signature_hash_algorithm, [entry.extensions for entry in crl]
        _require_whole_octets(raw, crl.signature)
    except _PARSE_ERRORS as exc:
        raise CollateralMalformedError(f"{what}: want a DER CRL, got {len(raw)} bytes that are not") from exc
    return crl


def der_of(certificate: x509.Certificate) -> bytes:
    """The certificate's DER bytes."""
    return certificate.public_bytes(Encoding.DER)


def common_name(name: x509.Name) -> str:
    """The one CN of *name*, or the empty string when there is none or there are several."""
    values = [attribute.value for attribute in name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""


def require_authority(certificate: x509.Certificate, *, path_length: int, at: datetime, step: int) -> None:
    """Require a P-256 CA with exactly this path length that may sign certificates and CRLs, valid at *at*.

    Raises:
        QuoteUntrustedError: It is none; *step* is the number in the error.
    """
    basic, usage = _profile(certificate, at, step)
    if not basic.ca or basic.path_length != path_length:
        raise QuoteUntrustedError(step, f"{_named(certificate)}: want a CA of path length {path_length}")
    if not (usage.key_cert_sign and usage.crl_sign) or usage.digital_signature:
        raise QuoteUntrustedError(step, f"{_named(certificate)}: want key usage certSign and cRLSign")


def require_end_entity(certificate: x509.Certificate, *, at: datetime, step: int) -> None:
    """Require a P-256 certificate that signs data and no certificates, valid at *at*.

    Raises:
        QuoteUntrustedError: It is none; *step* is the number in the error.
    """
    basic, usage = _profile(certificate, at, step)
    if basic.ca:
        raise QuoteUntrustedError(step, f"{_named(certificate)}: want an end entity, got a CA")
    if not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise QuoteUntrustedError(step, f"{_named(certificate)}: want key usage digitalSignature, without certSign")


def require_issued(certificate: x509.Certificate, issuer: x509.Certificate, *, step: int) -> None:
    """Require that *issuer*, by name and by key, signed *certificate*.

    Raises:
        QuoteUntrustedError: It did not.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as exc:
        raise QuoteUntrustedError(step, f"{_named(certificate)}: not signed by {_named(issuer)}") from exc


def require_current_crl(
    crl: x509.CertificateRevocationList, issuer: x509.Certificate, *, minimum: int, at: datetime, step: int
) -> int:
    """Require a full CRL signed by *issuer*, in force at *at*, numbered *minimum* or more; returns its number.

    Raises:
        QuoteUntrustedError: The CRL is another's, not in force, no full one, or older than *minimum*.
    """
    name = f"CRL of {_named(issuer)}"
    if crl.issuer != issuer.subject or not _is_signed_with(crl, p256_key(issuer, step=step)):
        raise QuoteUntrustedError(step, f"{name}: not signed by it")
    next_update = crl.next_update_utc
    if next_update is None or not crl.last_update_utc <= at < next_update:
        raise QuoteUntrustedError(step, f"{name}: in force {crl.last_update_utc} to {next_update}, not at {at}")
    if any(extension.critical for extension in crl.extensions):
        raise QuoteUntrustedError(step, f"{name}: want a full CRL, got one with a critical extension")
    number = _crl_number(crl)
    require_crl_number(number, minimum, issuer, step=step)
    return number or 0


def require_crl_number(number: int | None, minimum: int, issuer: x509.Certificate, *, step: int) -> None:
    """Require that the CRL of *issuer* is not older than another that was seen.

    Raises:
        QuoteUntrustedError: It is below *minimum*, or has no number.
    """
    if number is None or number < minimum:
        raise QuoteUntrustedError(step, f"CRL of {_named(issuer)}: want number {minimum} or more, got {number}")


def validity(certificate: x509.Certificate, name: str) -> Period:
    """When it is valid, its last second included (RFC 5280, 4.1.2.5); *name* says which it is."""
    return Period.through(certificate.not_valid_before_utc, certificate.not_valid_after_utc, name)


def require_signature(
    key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, *, step: int, what: str
) -> None:
    """Require an ECDSA P-256 SHA-256 signature of 64 bytes, r||s.

    Raises:
        QuoteUntrustedError: It does not verify.
    """
    r, s = int.from_bytes(signature[:_COORDINATE], "big"), int.from_bytes(signature[_COORDINATE:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, _ECDSA)
    except InvalidSignature as exc:
        raise QuoteUntrustedError(step, f"{what}: its signature does not verify") from exc


def require_not_revoked(certificate: x509.Certificate, crl: x509.CertificateRevocationList, *, step: int) -> None:
    """Require that *crl* does not list *certificate*.

    Raises:
        QuoteUntrustedError: It does.
    """
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise QuoteUntrustedError(step, f"{_named(certificate)}: revoked, serial {certificate.serial_number:x}")


def p256_key(certificate: x509.Certificate, *, step: int) -> ec.EllipticCurvePublicKey:
    """The certificate's key, which must be on P-256.

    Raises:
        QuoteUntrustedError: It is on another curve, or of another kind.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise QuoteUntrustedError(step, f"{_named(certificate)}: want a P-256 key")
    return key


def _profile(certificate: x509.Certificate, at: datetime, step: int) -> tuple[x509.BasicConstraints, x509.KeyUsage]:
    p256_key(certificate, step=step)
    if at not in validity(certificate, ""):
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        raise QuoteUntrustedError(step, f"{_named(certificate)}: valid {first} to {last}, not at {at}")
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as exc:
        raise QuoteUntrustedError(step, f"{_named(certificate)}: want basic constraints and key usage") from exc
    if not (basic.critical and usage.critical):
        raise QuoteUntrustedError(step, f"{_named(certificate)}: want critical basic constraints and key usage")
    return basic.value, usage.value


def _require_whole_octets(der: bytes, signature: bytes) -> None:
    """The signature, which stands last, is a BIT STRING of whole octets: the library takes one that says it is not."""
    unused = der[-len(signature) - 1]
    if unused:
        raise ValueError(f"want a signature of whole octets, got one with {unused} unused bits")


def _is_signed_with(crl: x509.CertificateRevocationList, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        return crl.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Its signature is of another algorithm than the key.
        return False


def _crl_number(crl: x509.CertificateRevocationList) -> int | None:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _named(certificate: x509.Certificate) -> str:
    return f"certificate {common_name(certificate.subject)[:80]!r}"
