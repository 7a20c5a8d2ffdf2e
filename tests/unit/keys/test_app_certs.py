"""Certificates that an app's authority signs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from dstack.errors import InputError, KeyMalformedError
from dstack.keys import certs
from dstack.keys.app_certs import CertificateWishes, build_app_leaf
from dstack.keys.pem import certificate_pem
from dstack.keys.scalars import p256_from_scalar
from dstack.values import AppId

ROOT, CA, LEAF = (p256_from_scalar(bytes(31) + bytes((n,))) for n in (1, 2, 3))
APP = AppId(bytes(range(20)))
WISHES = CertificateWishes(None, "app.example", ("*.app.example", "192.0.2.7", "a_b.c"), True, True, False)


def _leaf(at: datetime, wishes: CertificateWishes = WISHES, **payloads: bytes) -> x509.Certificate:
    root = certs.build_root_ca(ROOT, at=at)
    app_ca = certs.build_app_ca(CA, root, ROOT, APP, at=at)
    return build_app_leaf(LEAF.public_key(), app_ca, CA, APP, wishes, at=at, **payloads)


def test_wishes_come_true(at: datetime) -> None:
    """Names, purposes and times are those that were asked for, the payloads those that were given."""
    leaf = _leaf(at, replace(WISHES, org_name="Org", not_before=1, not_after=2), app_info=b"i", attestation=b"a")

    assert leaf.subject.rfc4514_string() == "CN=app.example,O=Org"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == list(WISHES.subject_alt_names)
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (
        datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
    )
    assert [
        certs.certificate_payload(leaf, oid)
        for oid in (certs.OID_APP_ID, certs.OID_APP_INFO, certs.OID_CERTIFICATE_USAGE, certs.OID_ATTESTATION)
    ] == [APP, b"i", b"app:custom", b"a"]


@pytest.mark.parametrize(
    ("subject", "org_name", "is_critical"), [("", None, True), ("", "Org", False), ("a", None, False)]
)
def test_names_that_stand_alone_are_critical(
    at: datetime, subject: str, org_name: str | None, is_critical: bool
) -> None:
    """SDKs ask for no subject by default; without one, the alternative names must be understood by whoever reads."""
    leaf = _leaf(at, replace(WISHES, subject=subject, org_name=org_name))

    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical is is_critical


@pytest.mark.skipif(shutil.which("keytool") is None, reason="no Java here")
def test_java_reads_a_certificate_without_a_subject(at: datetime, tmp_path: Path) -> None:
    """It refuses to parse one whose alternative names are not critical then."""
    (tmp_path / "leaf.pem").write_text(certificate_pem(_leaf(at, replace(WISHES, subject=""))))

    printed = subprocess.run(
        ["keytool", "-printcert", "-file", str(tmp_path / "leaf.pem")], capture_output=True, text=True, check=False
    )

    assert (printed.returncode, "Issuer: CN=Dstack App CA, O=Dstack" in printed.stdout) == (0, True)


def test_least_of_a_certificate(at: datetime) -> None:
    """Without names, purposes and times it has no such extensions and lasts ten years."""
    leaf = _leaf(at, CertificateWishes(None, "", (), False, False, False))

    assert [extension.oid.dotted_string for extension in leaf.extensions] == [
        "2.5.29.15",
        certs.OID_APP_ID,
        certs.OID_CERTIFICATE_USAGE,
    ]
    assert leaf.not_valid_after_utc == at + timedelta(days=3650)


@pytest.mark.parametrize(
    ("wishes", "what"),
    [
        (replace(WISHES, subject="s" * 65), "subject: want at most 64 bytes, got 65"),
        (replace(WISHES, org_name="é" * 33), "org_name: want at most 64 bytes, got 66"),
        (replace(WISHES, subject_alt_names=("a b",)), "want a DNS name or an IP address, got 'a b'"),
        (replace(WISHES, subject_alt_names=("",)), "want a DNS name or an IP address, got ''"),
        (replace(WISHES, subject_alt_names=("é",)), "want a DNS name or an IP address"),
        (replace(WISHES, subject_alt_names=("a" * 254,)), "want a DNS name or an IP address"),
        (replace(WISHES, not_before=2, not_after=2), "not_before must be earlier than not_after"),
        (replace(WISHES, not_after=2**64 - 1), "not_after: want 0 to 253402300799 seconds since 1970"),
    ],
)
def test_what_a_certificate_cannot_hold_is_refused(at: datetime, wishes: CertificateWishes, what: str) -> None:
    """The refusal names the wish."""
    with pytest.raises(InputError, match=what):
        _leaf(at, wishes)


def test_authority_must_hold_its_key(at: datetime) -> None:
    """Nothing is signed with a key that is not the authority's."""
    root = certs.build_root_ca(ROOT, at=at)

    with pytest.raises(KeyMalformedError, match="not that of the private key beside it"):
        build_app_leaf(LEAF.public_key(), root, CA, APP, WISHES, at=at)
