"""Keys from an SGX enclave on the same host, and SGX quotes of version 3."""

from __future__ import annotations

from hashlib import sha256

import pytest

from dstack.attestation.key_provider import ProvidedKey, verify_provided_key
from dstack.attestation.quote import parse_quote
from dstack.attestation.verification_policy import STRICT, VerificationPolicy
from dstack.attestation.verify import verify_quote
from dstack.errors import AppraisalError, QuoteUntrustedError
from dstack.simulator.quoting import Enclave, make_enclave_quote, make_quote
from dstack.values import Digest32, ReportData

PROVIDER = Enclave(Digest32(b"\x0e" * 32))
KEY = b"an encrypted key"
BOUND = ReportData(sha256(KEY).digest() + bytes(32))
LISTING = VerificationPolicy(mr_enclaves=frozenset({PROVIDER.mr_enclave}))


def test_a_listed_provider_gives_a_key(pki, roots, at):
    """The key of a listed enclave is taken, and its MRENCLAVE is the provider's id."""
    quote = make_enclave_quote(pki, enclave=PROVIDER, report_data=BOUND)
    collateral = pki.collateral(sgx=True)

    provided = verify_provided_key(quote, KEY, collateral, roots=roots, at=at, policy=LISTING)

    verified = verify_quote(quote, collateral, roots=roots, at=at, policy=LISTING)
    assert provided == ProvidedKey(KEY, PROVIDER.mr_enclave, verified)
    assert (parse_quote(quote).version, verified.ppid) == (3, pki.platform.ppid)


@pytest.mark.parametrize("key", [b"another key", KEY + b"\0", b""])
def test_another_key_is_refused(pki, roots, at, key):
    """A key other than the one that the enclave vouched for is refused."""
    quote = make_enclave_quote(pki, enclave=PROVIDER, report_data=BOUND)
    with pytest.raises(AppraisalError, match="key provider: want report data"):
        verify_provided_key(quote, key, pki.collateral(sgx=True), roots=roots, at=at, policy=LISTING)


def test_report_data_of_more_than_the_digest_is_refused(pki, roots, at):
    """Whatever follows the digest in the report data must be zero."""
    quote = make_enclave_quote(pki, enclave=PROVIDER, report_data=ReportData(BOUND[:63] + b"\1"))
    with pytest.raises(AppraisalError, match="key provider: want report data"):
        verify_provided_key(quote, KEY, pki.collateral(sgx=True), roots=roots, at=at, policy=LISTING)


def test_other_enclaves_are_refused(pki, roots, at):
    """An enclave that the policy does not list, or in debug mode, gives no keys."""
    collateral = pki.collateral(sgx=True)
    unlisted = make_enclave_quote(pki, enclave=Enclave(Digest32(bytes(32))), report_data=BOUND)
    debug = Enclave(PROVIDER.mr_enclave, attributes=bytes.fromhex("0700000000000000e700000000000000"))
    with pytest.raises(QuoteUntrustedError, match=r"step 16: enclave: the policy does not list MRENCLAVE 0000"):
        verify_provided_key(unlisted, KEY, collateral, roots=roots, at=at, policy=LISTING)
    debuggable = make_enclave_quote(pki, enclave=debug, report_data=BOUND)
    listed = make_enclave_quote(pki, enclave=PROVIDER, report_data=BOUND)
    with pytest.raises(QuoteUntrustedError, match=r"step 16: enclave: runs in debug mode"):
        verify_provided_key(debuggable, KEY, collateral, roots=roots, at=at, policy=LISTING)
    with pytest.raises(QuoteUntrustedError, match=r"step 16: enclave: the policy does not list"):
        verify_provided_key(listed, KEY, collateral, roots=roots, at=at, policy=STRICT)


def test_collateral_of_tds_does_not_serve(pki, roots, registers, at):
    """TDX collateral does not speak of enclaves, nor SGX collateral of TDs; a TD provides no keys."""
    enclave = make_enclave_quote(pki, enclave=PROVIDER, report_data=BOUND)
    td = make_quote(pki, registers=registers, report_data=BOUND)
    with pytest.raises(QuoteUntrustedError, match=r"step 6: TCB info: TDX version 3 type 0 does not fit"):
        verify_provided_key(enclave, KEY, pki.collateral(), roots=roots, at=at, policy=LISTING)
    with pytest.raises(QuoteUntrustedError, match=r"step 6: TCB info: SGX version 3 type 0 does not fit"):
        verify_quote(td, pki.collateral(sgx=True), roots=roots, at=at)
    with pytest.raises(AppraisalError, match="want the quote of an SGX enclave, got that of a TD"):
        verify_provided_key(td, KEY, pki.collateral(), roots=roots, at=at, policy=LISTING)
