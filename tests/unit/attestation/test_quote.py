"""Parsing quotes: steps 1 and 2."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dstack.attestation.quote import MAX_PADDING, EnclaveReport, TdReport, parse_enclave_report, parse_quote
from dstack.errors import QuoteMalformedError
from dstack.simulator.quoting import make_quote
from dstack.values import ReportData

TDX_FIELDS = {"rt_mr0": "rtmr0", "rt_mr1": "rtmr1", "rt_mr2": "rtmr2", "rt_mr3": "rtmr3"}


@pytest.fixture(scope="module")
def raw(pki, registers):
    """A simulated quote of version 4."""
    return make_quote(pki, registers=registers, report_data=ReportData(bytes(range(64))))


@pytest.mark.parametrize("name", ["intel-tdx-v4-uptodate", "intel-sgx-v3-hardening", "intel-tdx-v5-below-lowest-level"])
def test_real_quotes_have_the_fields_that_were_recorded(quotes, name):
    """Every recorded header and body field of a real quote is read at its place."""
    expected = json.loads((quotes / name / "expect.json").read_text())

    quote = parse_quote((quotes / name / "quote.bin").read_bytes())

    header, body = expected["header"], expected["body"]
    assert (quote.version, quote.tee_type) == (header["version"], header["tee_type"])
    assert (quote.qe_svn, quote.pce_svn) == (header["qe_svn"], header["pce_svn"])
    assert quote.user_data.hex() == header["user_data"]
    assert {field: getattr(quote.body, TDX_FIELDS.get(field, field)).hex() for field in body} == body


def test_golden_quotes_of_the_guest_are_read(shared_vectors):
    """Three further real quotes have the recorded registers, sizes and quoting enclave."""
    for case in json.loads((shared_vectors / "guest" / "quote_parse.json").read_text())["cases"]:
        content = (shared_vectors / "guest" / case["fixture"]).read_bytes()
        start = content.index(bytes.fromhex("0400020081000000")) if content[:1] != b"{" else 0
        raw = bytes.fromhex(json.loads(content)["quote"]) if content[:1] == b"{" else content[start:]

        quote = parse_quote(raw[: case["total_len"]])

        assert isinstance(quote.body, TdReport)
        for field in ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data", "mr_config_id", "tee_tcb_svn"):
            assert getattr(quote.body, field).hex() == case[field]
        assert len(quote.signed) == case["sig_off"]
        assert len(quote.signature.qe_auth_data) == case["qe_auth_len"]
        assert len(quote.signature.pck_chain_pem) == case["inner_cert_len"]
        assert quote.signature.qe_report.mr_signer.hex() == case["qe_mr_signer"]
        assert quote.signature.qe_report.isv_svn == case["qe_isv_svn"]


def test_a_simulated_quote_says_what_it_was_made_of(raw, registers):
    """Parsing undoes making: the registers and the report data come back."""
    body = parse_quote(raw).body

    assert isinstance(body, TdReport)
    assert body.report_data == bytes(range(64))
    for name in ("mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "mr_owner", "mr_owner_config"):
        assert getattr(body, name) == getattr(registers, name)


@given(cut=st.integers(min_value=0, max_value=5000))
def test_a_truncated_quote_is_malformed(raw, cut):
    """Cut anywhere inside its signature data, a quote is refused as malformed, and not otherwise."""
    assume(cut < 636 + int.from_bytes(raw[632:636], "little"))
    with pytest.raises(QuoteMalformedError, match="want"):
        parse_quote(raw[:cut])


@given(content=st.binary(min_size=1000, max_size=1400))
def test_arbitrary_bytes_are_malformed(content):
    """Bytes that are no quote raise our error and no other."""
    with pytest.raises(QuoteMalformedError, match="want"):
        parse_quote(content)


@given(body=st.binary(max_size=1500))
def test_arbitrary_bytes_after_a_good_header_are_malformed(raw, body):
    """The same holds when the header is good."""
    with pytest.raises(QuoteMalformedError, match="want"):
        parse_quote(raw[:48] + body.ljust(1000, b"\xff"))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x06\x00", "quote version: want 3, 4 or 5, got 6"),
        (2, b"\x03\x00", "attestation key type: want 2"),
        (4, b"\x00\x00", "TEE type: want 0x81 in version 4, got 0x0"),
        (12, b"\x00", "QE vendor: want 939a7233"),
        (764, b"\x05", "certification type: want 6, got 5"),
    ],
)
def test_step_1_and_2_header_and_outer_type(raw, offset, value, message):
    """A header field or the outer certification type of another value is refused by name."""
    with pytest.raises(QuoteMalformedError, match=message):
        parse_quote(raw[:offset] + value + raw[offset + len(value) :])


@pytest.mark.parametrize("offset", [632, 766])
def test_step_2_lengths_that_do_not_nest(raw, offset):
    """A length that is one too large or too small is refused."""
    for change in (-1, 1):
        length = int.from_bytes(raw[offset : offset + 4], "little") + change
        with pytest.raises(QuoteMalformedError, match=r"want|unexpected|padding"):
            parse_quote(raw[:offset] + length.to_bytes(4, "little") + raw[offset + 4 :])


def test_step_2_padding(raw):
    """Up to 4096 zero bytes may follow the signature data; more, or others, are refused."""
    end = 636 + int.from_bytes(raw[632:636], "little")

    assert parse_quote(raw[:end]) == parse_quote(raw[:end] + bytes(MAX_PADDING)) == parse_quote(raw)
    with pytest.raises(QuoteMalformedError, match="padding: want at most 4096 bytes, got 4097"):
        parse_quote(raw[:end] + bytes(MAX_PADDING + 1))
    with pytest.raises(QuoteMalformedError, match="padding: want only zero bytes"):
        parse_quote(raw + b"\x01")


def test_step_1_size():
    """A quote of ten megabytes is refused before anything in it is read."""
    with pytest.raises(QuoteMalformedError, match="quote: want 1000 to 65536 bytes, got 10485760"):
        parse_quote(bytes(10 * 1024 * 1024))


def test_step_2_body_type_of_version_5(quotes):
    """A version 5 body of an unknown type, or whose size is not that of its type, is refused."""
    raw = (quotes / "intel-tdx-v5-below-lowest-level" / "quote.bin").read_bytes()
    for offset, value, message in (
        (48, 4, r"the extended report of TD 1.5 \(type 4\) is not supported"),
        (48, 1, r"an SGX enclave's report in a TDX quote \(type 1\) is not supported"),
        (48, 2, "want type 2 of 584 bytes or 3 of 648"),
        (50, 0, "want type 2 of 584 bytes or 3 of 648"),
    ):
        mutated = bytearray(raw)
        mutated[offset] = value
        with pytest.raises(QuoteMalformedError, match=f"body: {message}"):
            parse_quote(bytes(mutated))


def test_an_enclave_report_is_384_bytes():
    """A longer or shorter SGX report body is refused."""
    for size in (EnclaveReport.SIZE - 1, EnclaveReport.SIZE + 1):
        with pytest.raises(QuoteMalformedError, match=r"want|unexpected"):
            parse_enclave_report(bytes(size))
