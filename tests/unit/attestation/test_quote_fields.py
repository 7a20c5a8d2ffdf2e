"""Every byte of a quote has a name."""

from __future__ import annotations

import pytest

from dstack.attestation.quote import parse_quote
from dstack.attestation.quote_fields import quote_fields

NAMES = ("intel-tdx-v4-uptodate", "intel-sgx-v3-hardening", "intel-tdx-v5-below-lowest-level")


@pytest.mark.parametrize("name", NAMES)
def test_fields_make_up_the_quote(quotes, name):
    """The fields of a real quote of each version, put together in order, are the quote."""
    raw = (quotes / name / "quote.bin").read_bytes()

    fields = quote_fields(raw)

    assert b"".join(field.raw for field in fields) == raw
    assert [field.offset for field in fields] == [
        sum(len(other.raw) for other in fields[:n]) for n in range(len(fields))
    ]
    assert len({field.name for field in fields}) == len(fields)


def test_fields_are_those_of_the_parser(quotes):
    """What is named is what the parser reads under that name."""
    raw = (quotes / "intel-tdx-v5-below-lowest-level" / "quote.bin").read_bytes()
    quote, fields = parse_quote(raw), {field.name: field for field in quote_fields(raw)}

    assert fields["MRTD"].raw == quote.body.mr_td
    assert fields["TEE_TCB_SVN2"].raw == quote.body.tee_tcb_svn2
    assert fields["REPORTDATA"].raw == quote.body.report_data
    assert fields["QE MRSIGNER"].raw == quote.signature.qe_report.mr_signer
    assert fields["PCK certificate chain"].raw == quote.signature.pck_chain_pem
    assert (fields["body type"].meaning, fields["TEE type"].meaning) == ("3: TD 1.5", "129: TDX")
    assert fields["TDATTRIBUTES"].meaning == "SEPT_VE_DISABLE"
    assert fields["TEE_TCB_SVN2"].meaning == "TDX module version 1, ISVSVN 13"
