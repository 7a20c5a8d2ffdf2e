"""Answers of Intel's service and of its caches, in every shape that they have."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import quote as percent_encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation.pcs_answers import (
    MAX_ANSWER,
    QE_IDENTITY,
    TCB_INFO,
    parse_crl_answer,
    parse_issuer_chain,
    parse_signed_document,
)
from dstack.errors import CollateralMalformedError
from dstack.simulator.pki import SimulatedPki

SIGNATURE = bytes(range(64))
documents = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8) | st.lists(st.integers()))
blanks = st.text(" \t\r\n", max_size=3)


@given(documents, blanks, blanks, st.booleans())
def test_the_signed_text_is_taken_as_it_is_written(document: dict[str, object], a: str, b: str, swap: bool) -> None:
    """Whatever its blanks and escapes, and whichever member comes first."""
    text = json.dumps(document, indent=len(a) or None)
    members = [f'{a}"tcbInfo"{b}:{a}{text}{b}', f'{b}"signature":"{SIGNATURE.hex()}"{a}']
    body = "{" + ",".join(reversed(members) if swap else members) + "}" + b

    assert parse_signed_document(body.encode(), TCB_INFO) == (text, SIGNATURE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "not JSON"),
        ("[]", "want a JSON object"),
        ('{"enclaveIdentity": {}, "signature": ""}', "unknown member 'enclaveIdentity'"),
        ('{"tcbInfo": {}}', "signature"),
        ('{"tcbInfo": {}, "signature": "00"}', "signature of tcbInfo: want 64 bytes, got 1"),
        (f'{{"tcbInfo": "{{}}", "signature": "{SIGNATURE.hex()}"}}', "tcbInfo: want a JSON object"),
        (f'{{"signature": "{SIGNATURE.hex()}"}}', "tcbInfo: want a JSON object"),
        (f'{{"tcbInfo": {{}}, "tcbInfo": {{}}, "signature": "{SIGNATURE.hex()}"}}', "duplicate|twice"),
        ("<html>Service Unavailable</html>", "not JSON"),
    ],
)
def test_other_answers_are_malformed(body: str, message: str) -> None:
    """A page of a proxy, an answer to another question, a member twice."""
    with pytest.raises(CollateralMalformedError, match=message):
        parse_signed_document(body.encode(), TCB_INFO)


def test_real_documents_keep_their_text(pki: SimulatedPki) -> None:
    """Intel's shape: the document compact in the answer, the signature over exactly that."""
    collateral = pki.collateral()
    body = f'{{"enclaveIdentity":{collateral.qe_identity},"signature":"{collateral.qe_identity_signature.hex()}"}}'

    text, signature = parse_signed_document(body.encode(), QE_IDENTITY)

    assert (text, signature) == (collateral.qe_identity, collateral.qe_identity_signature)


def test_crls_come_in_three_wrappings(pki: SimulatedPki) -> None:
    """DER, PEM and hexadecimal of either case are the same CRL."""
    der = pki.collateral().pck_crl
    pem = b"-----BEGIN X509 CRL-----\n" + b64encode(der) + b"\n-----END X509 CRL-----\n"

    assert [parse_crl_answer(form) for form in (der, pem, der.hex().encode(), der.hex().upper().encode() + b"\n")] == [
        der
    ] * 4


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x30" * (MAX_ANSWER + 1),
        b"abc",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----",
    ],
    ids=["empty", "too long", "half a byte", "certificate", "half a base64 group"],
)
def test_wrappings_that_do_not_hold_are_malformed(body: bytes) -> None:
    """Nothing is guessed."""
    with pytest.raises(CollateralMalformedError, match="CRL: want"):
        parse_crl_answer(body)


def test_issuer_chains_are_percent_encoded(pki: SimulatedPki) -> None:
    """As both services write them, with blanks as %20; plain text is taken too."""
    chain = pki.collateral().tcb_info_issuer_chain

    assert parse_issuer_chain(percent_encode(chain)) == chain
    assert parse_issuer_chain(chain) == chain


@pytest.mark.parametrize("header", ["%C3%BC", "ü", "A" * 70000], ids=["escaped", "plain", "too long"])
def test_other_headers_are_malformed(header: str) -> None:
    """PEM is ASCII and short."""
    with pytest.raises(CollateralMalformedError, match="issuer chain: want"):
        parse_issuer_chain(header)
