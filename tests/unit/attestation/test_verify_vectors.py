"""Golden quotes: Intel's real ones, and 115 cases under one simulated root."""

from __future__ import annotations

import json
from base64 import b64decode
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dstack.attestation.collateral import parse_collateral
from dstack.attestation.roots import INTEL_ROOTS, TrustedRoots, simulated_root
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import STRICT, AcceptStatus, AllowLegacyModule, VerificationPolicy
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import DstackError, QuoteUntrustedError
from dstack.values import Digest32

QUOTES = Path(__file__).resolve().parents[2] / "vectors" / "quotes"
SIM = json.loads((QUOTES / "sim" / "cases.json").read_text())
CASES = {case["name"]: case for case in SIM["cases"]}

# Accepts whatever a policy may accept, so that the vectors' "accept:STATUS" can be compared.
END = datetime(2040, 1, 1, tzinfo=UTC)
ANY_STATUS = tuple(AcceptStatus(status, END) for status in TcbStatus if status is not TcbStatus.REVOKED)
LENIENT = VerificationPolicy(relaxations=(*ANY_STATUS, AllowLegacyModule(END)))

# "policy" cases under the strict policy; the vectors leave them to us.
STRICT_REFUSES = {
    "td-perfmon": 14,
    "td-pks": 14,
    "module-version-0": 15,
    "chain-without-root": 3,
    "chain-extra-cert": 3,
    "qe-auth-data-0": 13,
    "qe-auth-data-33": 13,
}
STRICT_ACCEPTS = {"mr-seam-unknown", "tcb-eval-number-low"}


@cache
def sim_base() -> dict[str, str]:
    """The collateral that the cases change."""
    return json.loads((QUOTES / "sim" / "collateral.json").read_text())


@cache
def sim_roots() -> TrustedRoots:
    """Trust in the cases' maker."""
    return TrustedRoots((simulated_root((QUOTES / "sim" / "root.der").read_bytes()),))


def sim_quote(case: dict[str, Any]) -> bytes:
    """The quote of a case, its mutation applied."""
    raw = bytearray(b64decode(SIM["quotes_base64"][case.get("quote", "good")]))
    mutation = case.get("mutate", {})
    for offset, mask in mutation.get("xor", {}).items():
        raw[int(offset)] ^= mask
    return bytes(raw[: mutation.get("cut", len(raw))]) + bytes.fromhex(mutation.get("append", ""))


def verify_sim(name: str, policy: VerificationPolicy) -> VerifiedQuote:
    """Verify a case."""
    case = CASES[name]
    collateral = json.dumps({**sim_base(), **case.get("collateral_override", {})})
    return verify_quote(
        sim_quote(case),
        parse_collateral(collateral),
        roots=sim_roots(),
        at=datetime.fromtimestamp(case.get("at", SIM["now"]), UTC),
        policy=policy,
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expect"].startswith("accept:")])
def test_genuine_quotes_verify_with_their_status(name):
    """A quote that is genuine verifies, with exactly the TCB status its collateral gives it."""
    verified = verify_sim(name, LENIENT)

    assert f"accept:{verified.tcb_status.value}" == CASES[name]["expect"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expect"] == "reject"])
def test_others_are_refused_under_the_most_lenient_policy(name):
    """What must be refused is refused whatever the policy, by one of our errors."""
    with pytest.raises(DstackError, match=r"."):
        verify_sim(name, LENIENT)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expect"] == "policy"])
def test_what_the_vectors_leave_to_policy_is_decided(name):
    """Each case that is a matter of policy has one outcome under the strict policy, refusals by their step."""
    if name in STRICT_ACCEPTS:
        assert verify_sim(name, STRICT).tcb_status is TcbStatus.UP_TO_DATE
        return
    with pytest.raises(QuoteUntrustedError, match=r"step") as caught:
        verify_sim(name, STRICT)
    assert caught.value.step == STRICT_REFUSES[name]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expect"].startswith("accept:")])
def test_the_strict_policy_takes_up_to_date_alone(name):
    """Under the strict policy a genuine quote of any other status is refused."""
    if CASES[name]["expect"] == "accept:UpToDate":
        assert verify_sim(name, STRICT).tcb_status is TcbStatus.UP_TO_DATE
        return
    with pytest.raises(QuoteUntrustedError, match=r"step 1[59]"):
        verify_sim(name, STRICT)


def test_a_malleated_signature_is_the_same_statement():
    """(r, n-s) verifies too, so two quotes of different bytes are one signed statement."""
    good, malleated = verify_sim("good", STRICT), verify_sim("malleated-signature", STRICT)

    assert sim_quote(CASES["good"]) != sim_quote(CASES["malleated-signature"])
    assert good.quote.signed == malleated.quote.signed


def intel(name: str, policy: VerificationPolicy) -> VerifiedQuote:
    """Verify one of Intel's quotes at its time."""
    folder = QUOTES / name
    expectation = json.loads((folder / "expect.json").read_text())
    return verify_quote(
        (folder / "quote.bin").read_bytes(),
        parse_collateral((folder / "collateral.json").read_bytes()),
        roots=INTEL_ROOTS,
        at=datetime.fromtimestamp(expectation["verify_at"], UTC),
        policy=policy,
    )


def test_a_real_tdx_quote_verifies_under_intels_root():
    """A quote of a real TDX machine verifies strictly, and the result says all it rests on."""
    verified = intel("intel-tdx-v4-uptodate", STRICT)

    assert verified.tcb_status is TcbStatus.UP_TO_DATE
    assert verified.advisory_ids == ()
    assert verified.ppid.hex() == "811dca2a26b952e85bb6448b097ba4fd"
    assert verified.fmspc.hex() == "b0c06f000000"
    assert verified.root.fingerprint == "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    assert not verified.root.simulated
    assert verified.evaluation_number == 17
    assert (verified.root_crl_number, verified.pck_crl_number) == (1, 1)
    assert verified.expires_at == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)


def test_a_real_sgx_quote_verifies_for_a_policy_that_lists_its_enclave():
    """A real SGX quote verifies with its status and advisories when status and enclave are accepted."""
    enclave = Digest32.from_hex("33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb")

    verified = intel(
        "intel-sgx-v3-hardening",
        VerificationPolicy(relaxations=ANY_STATUS, mr_enclaves=frozenset({enclave})),
    )

    assert verified.tcb_status is TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED
    assert verified.advisory_ids == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert verified.ppid.hex() == "d04ec06d4e6d92dc90d0ad3cf5ee2ddf"


def test_a_real_sgx_quote_is_refused_by_default():
    """No enclave is listed by default, so an SGX quote is refused at step 16."""
    with pytest.raises(QuoteUntrustedError, match=r"step 16: enclave: the policy does not list MRENCLAVE 33d8"):
        intel("intel-sgx-v3-hardening", STRICT)


def test_a_real_quote_below_the_lowest_level_is_refused():
    """A genuine quote that no TCB level matches is refused, whatever the accepted statuses."""
    with pytest.raises(QuoteUntrustedError, match=r"step 13: .*No matching TCB level"):
        intel("intel-tdx-v5-below-lowest-level", LENIENT)


def test_intel_and_simulated_roots_do_not_stand_in_for_each_other():
    """A real quote is refused where only a simulated root is trusted, and the reverse."""
    folder = QUOTES / "intel-tdx-v4-uptodate"
    quote, collateral = (folder / "quote.bin").read_bytes(), parse_collateral((folder / "collateral.json").read_text())
    with pytest.raises(QuoteUntrustedError, match=r"step 3: root 'Intel SGX Root CA' is not a configured root"):
        verify_quote(quote, collateral, roots=sim_roots(), at=datetime(2025, 7, 4, tzinfo=UTC))

    with pytest.raises(QuoteUntrustedError, match=r"step 3: root 'Simulated SGX Root CA' is not a configured root"):
        verify_quote(
            sim_quote(CASES["good"]),
            parse_collateral(json.dumps(sim_base())),
            roots=INTEL_ROOTS,
            at=datetime.fromtimestamp(SIM["now"], UTC),
        )
