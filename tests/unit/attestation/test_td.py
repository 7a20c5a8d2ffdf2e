"""Steps 14 to 16 where no quote of the vectors reaches: TD 1.5 service TDs, SGX debug."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dstack.attestation.quote import EnclaveReport, TdReport, parse_quote
from dstack.attestation.td import check_enclave, check_module
from dstack.attestation.verification_policy import STRICT, VerificationPolicy
from dstack.errors import QuoteUntrustedError
from dstack.values import Register

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


def test_step_15_a_service_td_is_refused(quotes):
    """A TD 1.5 bound to a service TD, which could migrate it, is refused; without one it passes."""
    report = parse_quote((quotes / "intel-tdx-v5-below-lowest-level" / "quote.bin").read_bytes()).body
    assert isinstance(report, TdReport)

    check_module(report, STRICT, AT)
    with pytest.raises(QuoteUntrustedError, match=r"step 15: service TD: want none, got 0{95}1"):
        check_module(replace(report, mr_service_td=Register(bytes(47) + b"\x01")), STRICT, AT)


def test_step_16_a_debug_enclave_is_refused_though_listed(quotes):
    """An SGX enclave in debug mode is refused even when the policy lists it."""
    report = parse_quote((quotes / "intel-sgx-v3-hardening" / "quote.bin").read_bytes()).body
    assert isinstance(report, EnclaveReport)
    listing = VerificationPolicy(mr_enclaves=frozenset({report.mr_enclave}))

    check_enclave(report, listing)
    debug = replace(report, attributes=bytes([report.attributes[0] | 2]) + report.attributes[1:])
    with pytest.raises(QuoteUntrustedError, match=r"step 16: enclave: runs in debug mode"):
        check_enclave(debug, listing)
