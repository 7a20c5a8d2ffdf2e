"""NOT PRODUCTION. The certificates of a simulated platform, in Intel's shapes (quote-verification.md section 8)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dstack.attestation.pck import SGX_EXTENSION, PckExtension

# Certificates are valid from a day before the PKI's birth: clocks differ.
BACKDATED = timedelta(days=1)
_LIFETIME = timedelta(days=3650)
_ROOT_URL = "https://simulator.invalid/root.der"
_SGX_OID = bytes.fromhex("2a864886f84d010d01")


@dataclass(frozen=True, slots=True)
class Role:
    """What one certificate is for: its subject CN, its serial number, and for a CA its path length."""

    name: str
    serial: int
    path_length: int | None = None


ROOT = Role("Simulated SGX Root CA", 1, path_length=1)
PCK_AUTHORITY = Role("Simulated SGX PCK Platform CA", 2, path_length=0)
TCB_SIGNER = Role("Simulated SGX TCB Signing", 3)
PCK = Role("Simulated SGX PCK Certificate", 0x1001)


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs: a CA's name and key."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey


def subject_name(role: Role) -> x509.Name:
    """The subject of *role*'s certificate."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, role.name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Simulated TEE PKI"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )


def issue_certificate(
    role: Role,
    key: ec.EllipticCurvePublicKey,
    issuer: Issuer,
    *,
    at: datetime,
    platform: PckExtension | None = None,
) -> x509.Certificate:
    """Issue *role*'s certificate over *key*; *platform* becomes the SGX extension of a PCK certificate."""
    is_authority = role.path_length is not None
    builder = (
        x509.CertificateBuilder(issuer.name, subject_name(role), key, role.serial)
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + _LIFETIME)
        .add_extension(x509.BasicConstraints(is_authority, role.path_length), critical=True)
        .add_extension(_key_usage(is_authority=is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority_key_identifier(issuer.key), critical=False)
        .add_extension(_crl_location(), critical=False)
    )
    if platform is not None:
        extension = x509.UnrecognizedExtension(SGX_EXTENSION, serialise_pck_extension(platform))
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer.key, hashes.SHA256(), ecdsa_deterministic=True)


def authority_key_identifier(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    """The identifier by which a certificate or CRL points at its issuer's key."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def serialise_pck_extension(platform: PckExtension) -> bytes:
    """The SGX extension's DER: the inverse of `parse_pck_extension`."""
    components = [_pair(bytes([2, n]), _integer(svn)) for n, svn in enumerate(platform.cpu_svn, start=1)]
    tcb = [*components, _pair(b"\x02\x11", _integer(platform.pce_svn)), _pair(b"\x02\x12", _octets(platform.cpu_svn))]
    fields = [
        _pair(b"\x01", _octets(platform.ppid)),
        _pair(b"\x02", _der(0x30, b"".join(tcb))),
        _pair(b"\x03", _octets(platform.pce_id)),
        _pair(b"\x04", _octets(platform.fmspc)),
        _pair(b"\x05", _der(0x0A, bytes([platform.sgx_type]))),
    ]
    if platform.platform_instance_id is not None:
        fields.append(_pair(b"\x06", _octets(platform.platform_instance_id)))
    return _der(0x30, b"".join(fields))


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=not is_authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _crl_location() -> x509.CRLDistributionPoints:
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(_ROOT_URL)], None, None, None)
    return x509.CRLDistributionPoints([point])


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _octets(content: bytes) -> bytes:
    return _der(0x04, content)


def _integer(number: int) -> bytes:
    return _der(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _pair(arc: bytes, value: bytes) -> bytes:
    return _der(0x30, _der(0x06, _SGX_OID + arc) + value)
