"""Signing requests: who shall be certified, in dstack's own form."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation.evidence import Evidence, serialise_evidence
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.signing_request import serialise_signing_request, verify_signing_request
from dstack.errors import DstackError, EvidenceMalformedError, MessageMalformedError, SignatureUntrustedError
from dstack.keys.app_certs import CertificateWishes
from dstack.keys.pem import spki_der
from dstack.keys.scalars import p256_from_scalar

KEY = p256_from_scalar(bytes(31) + b"\x05")
OTHER = p256_from_scalar(bytes(31) + b"\x06")
EVIDENCE = Evidence(b"quote" * 250, (), (), ratls_report_data(spki_der(KEY)), "{}")
WISHES = CertificateWishes("Org", "app.example", ("app.example", "192.0.2.7"), True, False, True, True, 1, None)


def _signed(raw: bytes, key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    return key.sign(raw, ec.ECDSA(hashes.SHA256()))


def _request(wishes: CertificateWishes = WISHES) -> bytes:
    return serialise_signing_request(spki_der(KEY), wishes, serialise_evidence(EVIDENCE))


texts = st.text(max_size=40)
times = st.none() | st.integers(0, 2**64 - 1)
flags = st.booleans()


@given(
    st.builds(
        CertificateWishes,
        org_name=st.none() | texts,
        subject=texts,
        subject_alt_names=st.lists(texts, max_size=5).map(tuple),
        usage_server_auth=flags,
        usage_client_auth=flags,
        ext_quote=flags,
        ext_app_info=flags,
        not_before=times,
        not_after=times,
    )
)
def test_what_was_written_is_read(wishes: CertificateWishes) -> None:
    """Whatever is wished for arrives, with the evidence and the key."""
    raw = _request(wishes)

    request = verify_signing_request(2, raw, _signed(raw))

    assert (request.wishes, request.evidence, request.spki) == (wishes, EVIDENCE, spki_der(KEY))


def test_golden_requests(golden_csr: Any) -> None:
    """Requests of both versions are read as they were meant; a wrong word, signature or length is refused."""
    seen = {}
    for case in golden_csr["cases"]:
        try:
            request = verify_signing_request(
                case["api_version"], bytes.fromhex(case["csr"]), bytes.fromhex(case["signature"])
            )
        except DstackError as exc:
            seen[case["name"]] = str(exc)
        else:
            seen[case["name"]] = request.wishes.subject

    assert seen == {
        "v1": "app.example.com",
        "v2": "app.example.com",
        "v2-minimal": "app.example.com",
        "v2-msgpack-attestation": "app.example.com",
        "bad confirm word": "signing request: want the confirm word 'please sign cert:', got 'please sign cert!'",
        "signature by another key": "signing request: its signature is not by the key in it",
        # Decodes; that its evidence is bound to another key is found when it is appraised.
        "attestation bound to another key": "app.example.com",
        "trailing byte after v0 attestation": "evidence: 1 unexpected bytes at offset 2382",
    }


def test_signature_of_another_key_is_refused() -> None:
    """Who does not hold the key cannot have it certified."""
    raw = _request()

    with pytest.raises(SignatureUntrustedError, match="its signature is not by the key in it"):
        verify_signing_request(2, raw, _signed(raw, OTHER))


@given(st.integers(0, len(_request()) * 8 - 1))
def test_every_bit_is_signed(bit: int) -> None:
    """A request that was changed anywhere is refused, whichever check sees it first."""
    raw, changed = _request(), bytearray(_request())
    changed[bit // 8] ^= 1 << bit % 8

    with pytest.raises(DstackError, match=r"."):
        verify_signing_request(2, bytes(changed), _signed(raw))


@pytest.mark.parametrize("version", [0, 3, 2**32 - 1])
def test_other_api_versions_are_refused(version: int) -> None:
    """There are two forms; nothing else is guessed at."""
    with pytest.raises(MessageMalformedError, match=f"Unsupported API version: {version}"):
        verify_signing_request(version, b"", b"")


def test_key_of_another_curve_is_refused() -> None:
    """Certificates are of P-256 alone."""
    key = ec.generate_private_key(ec.SECP384R1())
    raw = serialise_signing_request(
        spki_der(key),
        WISHES,
        serialise_evidence(EVIDENCE),
    )

    with pytest.raises(MessageMalformedError, match="want a key of the curve P-256"):
        verify_signing_request(2, raw, key.sign(raw, ec.ECDSA(hashes.SHA256())))


def test_flag_that_is_neither_yes_nor_no_is_refused() -> None:
    """There is one encoding of each request: a flag of 2 is none."""
    raw = _request(replace(WISHES, org_name=None))
    at = raw.index(b"app.example") - 2
    assert raw[at] == 0
    changed = raw[:at] + b"\x02" + raw[at + 1 :]

    with pytest.raises(EvidenceMalformedError, match="org_name: want 0 or 1, got 2"):
        verify_signing_request(2, changed, _signed(changed))


def test_too_many_names_are_refused() -> None:
    """A stranger does not decide how long we work."""
    raw = _request(replace(WISHES, subject_alt_names=("a",) * 101))

    with pytest.raises(MessageMalformedError, match="subject_alt_names: want at most 100, got 101"):
        verify_signing_request(2, raw, _signed(raw))


@pytest.fixture(scope="module")
def golden_csr(project_root: Any) -> Any:
    """Requests made for this project by a separate program."""
    return json.loads((project_root / "tests" / "vectors" / "kms" / "csr.json").read_bytes())
