"""The certificates of a KMS and of its callers."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.errors import EvidenceMalformedError, InputError, KeyMalformedError
from dstack.keys import certs
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key
from dstack.keys.scalars import p256_from_scalar
from dstack.values import AppId

ROOT, TEMP, LEAF = (p256_from_scalar(bytes(31) + bytes((n,))) for n in (1, 2, 3))
APP = AppId.from_hex("eba60cb4a03b21d2d5d02f31bd373bfe55789d0e")
EVIDENCE = (certs.OID_ATTESTATION, bytes(1865))


def _rpc(at: datetime, domain: str = "kms.example.com", extensions: Any = (EVIDENCE,)) -> x509.Certificate:
    return certs.build_rpc_cert(LEAF, certs.build_root_ca(ROOT, at=at), ROOT, domain, extensions, at=at)


def _structure(certificate: x509.Certificate) -> dict[str, Any]:
    """Everything in a certificate but its signature and what the caller chose."""
    return {
        "version": certificate.version,
        "serial": certificate.serial_number,
        "algorithm": certificate.signature_algorithm_oid,
        "subject": certificate.subject.public_bytes(),
        "issuer": certificate.issuer.public_bytes(),
        "validity": (certificate.not_valid_before_utc, certificate.not_valid_after_utc),
        "key": certs.spki_der(certificate),
        "extensions": [(each.oid, each.critical, each.value.public_bytes()) for each in certificate.extensions],
    }


def _built(keys: dict[str, ec.EllipticCurvePrivateKey], samples: dict[str, x509.Certificate]) -> Any:
    """Our certificates for the keys, names and evidence of the sample ones."""
    # The samples end where ten years from here end.
    at = datetime(2036, 1, 1, tzinfo=UTC) - timedelta(days=3650)
    root, temp = (certs.build_root_ca(keys["root_ca"], at=at), certs.build_temp_ca(keys["tmp_ca"], at=at))
    server, caller = (
        [(certs.OID_ATTESTATION, certs.certificate_payload(samples[name], certs.OID_ATTESTATION))]
        for name in ("rpc_unified_ext", "ra_client")
    )
    return {
        "root_ca": root,
        "tmp_ca": temp,
        "app_ca": certs.build_app_ca(keys["app_ca"], root, keys["root_ca"], APP, at=at),
        "rpc_unified_ext": certs.build_rpc_cert(keys["rpc"], root, keys["root_ca"], "kms.example.com", server, at=at),
        "ra_client": certs.build_client_cert(keys["ra_client"], temp, keys["tmp_ca"], caller, at=at),
    }


def test_certificates_have_the_structure_of_the_samples(golden: Any) -> None:
    """All but the signature is equal, byte for byte: names, serial number, validity, extensions and their order."""
    data = golden("certs")
    keys = {name: load_private_key(pem) for name, pem in data["keys"].items()}
    samples = {name: load_certificate(data[name]) for name in data if name not in ("keys", "note", "app_info")}

    built = _built(keys, samples)

    assert {name: _structure(each) for name, each in built.items()} == {
        name: _structure(each) for name, each in samples.items()
    }
    assert {name: each.tbs_certificate_bytes for name, each in built.items()} == {
        name: each.tbs_certificate_bytes for name, each in samples.items()
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_verifies_the_chains(tmp_path: Path, at: datetime) -> None:
    """OpenSSL accepts server and client under their roots, for their purposes and the server's name."""
    root, temp = certs.build_root_ca(ROOT, at=at), certs.build_temp_ca(TEMP, at=at)
    client = certs.build_client_cert(LEAF, temp, TEMP, [EVIDENCE], at=at)
    app_ca = certs.build_app_ca(LEAF, root, ROOT, APP, at=at)
    files = {"root": root, "temp": temp, "rpc": _rpc(at), "client": client, "app": app_ca}
    for name, certificate in files.items():
        (tmp_path / name).write_text(certificate_pem(certificate))

    def verify(authority: str, *arguments: str) -> int:
        command = ["openssl", "verify", "-attime", str(int(at.timestamp())), "-CAfile", authority, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode

    assert verify("root", "-purpose", "sslserver", "-verify_hostname", "kms.example.com", "rpc") == 0
    assert verify("root", "-purpose", "sslserver", "-verify_hostname", "other.example.com", "rpc") != 0
    assert verify("temp", "-purpose", "sslclient", "client") == 0
    assert verify("root", "-purpose", "sslclient", "client") != 0
    assert verify("root", "app") == 0


def test_a_certificate_lasts_ten_years(at: datetime) -> None:
    """From 1975, as upstream's do, until ten years from now."""
    certificate = certs.build_root_ca(ROOT, at=at)

    assert certificate.not_valid_before_utc == datetime(1975, 1, 1, tzinfo=UTC)
    assert certificate.not_valid_after_utc == at + timedelta(days=3650)


def test_reissued_authorities_keep_their_identity(at: datetime) -> None:
    """Issued anew, an authority has the same name, serial number and key."""
    first, second = certs.build_root_ca(ROOT, at=at), certs.build_root_ca(ROOT, at=at + timedelta(days=400))

    assert (first.subject, first.serial_number) == (second.subject, second.serial_number)
    assert certs.spki_der(first) == certs.spki_der(second)


@pytest.mark.parametrize(
    ("name", "san"),
    [
        ("kms.example.com", x509.DNSName("kms.example.com")),
        ("localhost", x509.DNSName("localhost")),
        ("192.0.2.7", x509.IPAddress(ip_address("192.0.2.7"))),
        ("2001:db8::7", x509.IPAddress(ip_address("2001:db8::7"))),
    ],
)
def test_a_server_is_named_as_it_is_reached(at: datetime, name: str, san: x509.GeneralName) -> None:
    """A DNS name goes into a DNS entry, an IP address into an address entry."""
    names = _rpc(at, name).extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert list(names) == [san]


@pytest.mark.parametrize(
    "name",
    ["", ".", "a..b", "a.", "-a", "a-", "a_b", "*.a", "a b", "é", "a" * 64, "a." * 126 + "bc", "fe80::1%eth0", "a\n"],
)
def test_other_names_are_refused(at: datetime, name: str) -> None:
    """What is neither a DNS name nor an address gets no certificate."""
    with pytest.raises(InputError, match="want a DNS name of at most 253 letters"):
        _rpc(at, name)


def test_an_authority_must_hold_its_key(at: datetime) -> None:
    """No builder signs with a key that is not that of the issuing certificate."""
    root = certs.build_root_ca(ROOT, at=at)

    for build in (
        lambda: certs.build_rpc_cert(LEAF, root, TEMP, "a", [], at=at),
        lambda: certs.build_client_cert(LEAF, root, TEMP, [], at=at),
        lambda: certs.build_app_ca(LEAF, root, TEMP, APP, at=at),
    ):
        with pytest.raises(KeyMalformedError, match="not that of the private key beside it"):
            build()


def test_payloads_are_read_back(at: datetime) -> None:
    """What was put into an extension comes out; an extension that is absent gives nothing."""
    certificate = _rpc(at)

    assert certs.certificate_payload(certificate, certs.OID_CERTIFICATE_USAGE) == b"kms:rpc"
    assert certs.certificate_payload(certificate, certs.OID_ATTESTATION) == EVIDENCE[1]
    assert certs.certificate_payload(certificate, certs.OID_TDX_QUOTE) is None


def test_an_extension_that_occurs_twice_is_refused(at: datetime) -> None:
    """Of two payloads neither is chosen."""
    raw = _doubled_extension(at)

    with pytest.raises(EvidenceMalformedError, match="an extension occurs twice"):
        certs.certificate_payload(x509.load_der_x509_certificate(raw), certs.OID_ATTESTATION)


def test_an_extension_without_its_wrapping_is_refused(at: datetime) -> None:
    """The payload must be inside an OCTET STRING of its own."""
    bare = x509.UnrecognizedExtension(x509.ObjectIdentifier(certs.OID_ATTESTATION), b"\x00quote")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(LEAF.public_key())
        .serial_number(1)
        .not_valid_before(at)
        .not_valid_after(at + timedelta(days=1))
        .add_extension(bare, critical=False)
        .sign(LEAF, hashes.SHA256())
    )

    with pytest.raises(EvidenceMalformedError, match="want an OCTET STRING"):
        certs.certificate_payload(certificate, certs.OID_ATTESTATION)


def test_the_root_of_an_app_without_a_kms_carries_evidence(at: datetime) -> None:
    """It is an authority, signed by its own key, with the evidence that speaks for it."""
    certificate = certs.build_app_root(LEAF, [EVIDENCE], at=at)

    certificate.verify_directly_issued_by(certificate)
    assert certs.certificate_payload(certificate, certs.OID_ATTESTATION) == EVIDENCE[1]
    assert certificate.subject.rfc4514_string() == "CN=App Root Cert"


def _doubled_extension(at: datetime) -> bytes:
    """The DER of a certificate in which the last arc of one OID was changed to make it equal another's."""
    der = _rpc(at, extensions=[(certs.OID_TDX_QUOTE, b"one"), (certs.OID_ATTESTATION, b"two")]).public_bytes(
        encoding=serialization.Encoding.DER
    )
    arc = bytes.fromhex("2b0601040183e73d01")
    return der.replace(arc + b"\x01", arc + b"\x08")
