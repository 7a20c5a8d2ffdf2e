"""The refusals that no golden case can express (quote-verification.md section 9), by name.

The root in its own CRL, a P-384 leaf, a key off the curve and older CRLs are in test_verify.py, at their steps.
"""

from __future__ import annotations

import json
from base64 import encodebytes
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.collateral import parse_collateral, serialise_collateral
from dstack.attestation.pck import SGX_EXTENSION
from dstack.attestation.quote import MAX_QUOTE, parse_quote
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import check_quote, verify_quote
from dstack.errors import CollateralMalformedError, QuoteMalformedError, QuoteUntrustedError
from dstack.simulator.certificates import serialise_pck_extension
from dstack.simulator.pki import raw_signature
from dstack.simulator.quoting import make_quote
from dstack.values import ReportData

TEN_MIB = 10 * 1024 * 1024


class Twice:
    """A second SGX extension: the DER of one with the bytes of its OID's last arc changed back afterwards."""

    PLACEHOLDER = x509.ObjectIdentifier("1.2.840.113741.1.13.2")

    @classmethod
    def leaf(cls, pki) -> x509.Certificate:
        """The PCK certificate, with another extension beside the SGX extension."""
        old = pki.pck
        builder = x509.CertificateBuilder(
            old.issuer,
            old.subject,
            old.public_key(),
            old.serial_number,
            old.not_valid_before_utc,
            old.not_valid_after_utc,
        )
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, critical=extension.critical)
        second = x509.UnrecognizedExtension(cls.PLACEHOLDER, serialise_pck_extension(pki.platform))
        return builder.add_extension(second, critical=False).sign(pki.keys.pck_authority, hashes.SHA256())


def test_two_sgx_extensions_in_a_leaf_are_refused(pki, roots, registers, at):
    """A leaf that names two platforms is unreadable: which one counts must not be a matter of taste."""
    leaf = Twice.leaf(pki).public_bytes(Encoding.DER)
    # The two identifiers as DER; they differ in their last arc.
    sgx, other = (b"\x06\x09" + bytes.fromhex(f"2a864886f84d010d0{arc}") for arc in (1, 2))
    assert leaf.count(sgx) >= 1
    assert leaf.count(other) == 1
    start = leaf.index(other)
    twice = leaf[:start] + sgx + leaf[start + len(other) :]
    pem = _pem(twice)
    good = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    changed = _with_leaf(good, pki, pem)

    with pytest.raises(QuoteMalformedError, match=rf"PCK chain: .*{SGX_EXTENSION.dotted_string} twice"):
        verify_quote(changed, pki.collateral(), roots=roots, at=at)
    checks = check_quote(changed, pki.collateral(), roots=roots, at=at)
    assert checks.verified is None


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + encodebytes(der) + b"-----END CERTIFICATE-----\n"


def _with_leaf(quote: bytes, pki, leaf: bytes) -> bytes:
    """A version 4 quote with another first certificate."""
    old = parse_quote(quote).signature.pck_chain_pem
    rest = old[len(pki.pck.public_bytes(Encoding.PEM)) :]
    new = leaf + rest
    growth = len(new) - len(old)
    start = quote.index(old)

    def grown(at: int) -> bytes:
        return (int.from_bytes(quote[at : at + 4], "little") + growth).to_bytes(4, "little")

    head = quote[:632] + grown(632) + quote[636:766] + grown(766) + quote[770 : start - 4] + grown(start - 4)
    return head + new + quote[start + len(old) :]


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_duplicate_keys_in_a_document_are_refused(pki, roots, registers, at, name):
    """A member that appears twice is refused though the document be signed: two readers would differ."""
    good = pki.collateral()
    text = getattr(good, name).replace('"version":', '"version":1,"version":', 1)
    signature = raw_signature(pki.keys.tcb_signer, text.encode())
    changed = replace(good, **{name: text, f"{name}_signature": signature})
    quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))

    with pytest.raises(CollateralMalformedError, match="member 'version' appears twice"):
        verify_quote(quote, changed, roots=roots, at=at)
    with pytest.raises(CollateralMalformedError, match="member 'version' appears twice"):
        parse_collateral(serialise_collateral(changed))


def test_duplicate_keys_in_collateral_are_refused(pki):
    """A member of the collateral itself may appear once."""
    text = serialise_collateral(pki.collateral())
    with pytest.raises(CollateralMalformedError, match="member 'pck_crl' appears twice"):
        parse_collateral(text[:-1] + ', "pck_crl": "00"}')


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
def test_ten_mib_are_refused_by_their_length(pki, roots, registers, at, filling):
    """An input of 10 MiB is refused by its length alone, before a byte of it is read."""
    quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    huge = quote + filling * (TEN_MIB - len(quote))

    with pytest.raises(QuoteMalformedError, match=f"quote: want 1000 to {MAX_QUOTE} bytes, got {TEN_MIB}"):
        verify_quote(huge, pki.collateral(), roots=roots, at=at)
    with pytest.raises(CollateralMalformedError, match="collateral: want at most 4194304 bytes, got 10485760"):
        parse_collateral(filling * TEN_MIB)
    checks = check_quote(huge, pki.collateral(), roots=roots, at=at)
    assert [check.item for check in checks.checks if check.outcome.value == "failed"] == [1]


def test_an_older_crl_than_seen_is_a_rollback(pki, roots, registers, at):
    """Whoever passes on the highest CRL number it saw is never shown an older list again."""
    quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    newer = pki.collateral(crl_number=7)
    verified = verify_quote(quote, newer, roots=roots, at=at)
    seen = VerificationPolicy(
        min_root_crl_number=verified.root_crl_number,
        min_pck_crl_number=verified.pck_crl_number,
        min_evaluation_number=verified.evaluation_number,
    )

    assert verify_quote(quote, newer, roots=roots, at=at, policy=seen) == verified
    with pytest.raises(QuoteUntrustedError, match=r"step 4: CRL of .*: want number 7 or more, got 1"):
        verify_quote(quote, pki.collateral(), roots=roots, at=at, policy=seen)
    with pytest.raises(QuoteUntrustedError, match=r"step 6: TCB evaluation: want number 18 or more, got 17"):
        verify_quote(quote, pki.collateral(crl_number=7, evaluation_number=17), roots=roots, at=at, policy=seen)


def test_every_failure_is_shown(pki, roots, registers, at):
    """A quote with many things wrong at once: the checklist names each of them, and skips only what lacks its input."""
    quote = make_quote(
        pki,
        registers=registers,
        report_data=ReportData(bytes(64)),
        tcb_status="OutOfDate",
        fields_override={"td_attributes": bytes.fromhex("0100001000000000")},
    )
    documents = json.loads(pki.collateral().tcb_info)
    text = json.dumps({**documents, "pceId": "0001"})
    changed = replace(
        pki.collateral(), tcb_info=text, tcb_info_signature=raw_signature(pki.keys.tcb_signer, text.encode())
    )
    bad = bytearray(quote)
    bad[600] ^= 1

    checks = check_quote(bytes(bad), changed, roots=roots, at=at)

    assert [check.item for check in checks.checks if check.outcome.value == "failed"] == [6, 12, 13, 14]
    assert {check.item for check in checks.checks} == {*range(1, 17), 19}
    with pytest.raises(QuoteUntrustedError, match="step 6"):
        verify_quote(bytes(bad), changed, roots=roots, at=at)
