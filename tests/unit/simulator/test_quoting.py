"""The simulated quoting enclave."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dstack.attestation.quote import TdReport, parse_quote
from dstack.errors import InputError
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import Register, ReportData

REGISTERS = TdRegisters(*(Register(bytes([n]) * 48) for n in range(1, 9)))
PKI = SimulatedPki.generate(datetime(2027, 1, 15, tzinfo=UTC), b"quoting tests")


def quoted(**arguments: object) -> TdReport:
    """The TD report of a quote."""
    raw = make_quote(PKI, registers=REGISTERS, report_data=ReportData(bytes(range(64))), **arguments)
    body = parse_quote(raw).body
    assert isinstance(body, TdReport)
    return body


def test_a_quote_says_what_it_was_given():
    """Every register, the report data, and the defaults of a machine in order stand in the quote."""
    assert quoted() == TdReport(
        tee_tcb_svn=bytes([6, 1, 9]) + bytes(13),
        mr_seam=quoted().mr_seam,
        mr_signer_seam=ZERO_REGISTER,
        seam_attributes=bytes(8),
        td_attributes=bytes.fromhex("0000001000000000"),
        xfam=bytes.fromhex("e702060000000000"),
        mr_td=REGISTERS.mr_td,
        mr_config_id=REGISTERS.mr_config_id,
        mr_owner=REGISTERS.mr_owner,
        mr_owner_config=REGISTERS.mr_owner_config,
        rtmr0=REGISTERS.rtmr0,
        rtmr1=REGISTERS.rtmr1,
        rtmr2=REGISTERS.rtmr2,
        rtmr3=REGISTERS.rtmr3,
        report_data=ReportData(bytes(range(64))),
    )


def test_real_quotes_padding_is_there():
    """Like every real version 4 quote, a simulated one ends in 70 zero bytes."""
    raw = make_quote(PKI, registers=REGISTERS, report_data=ReportData(bytes(64)))

    assert len(raw) - 636 - int.from_bytes(raw[632:636], "little") == 70


def test_status_and_debug_are_chosen():
    """A status selects component 2 of the SVN; debug sets bit 0 of the TD attributes."""
    assert quoted(tcb_status="OutOfDate").tee_tcb_svn[2] == 5
    assert quoted(debug=True).td_attributes.hex() == "0100001000000000"


def test_an_unknown_status_is_refused():
    """A status that Intel does not define is refused, and the message lists those it does."""
    with pytest.raises(InputError, match=r"TCB status: want one of UpToDate, .*Revoked, got 'uptodate'"):
        quoted(tcb_status="uptodate")


@pytest.mark.parametrize("override", [{"rtmr4": bytes(48)}, {"rtmr0": bytes(47)}, {"mr_service_td": bytes(48)}])
def test_overrides_are_fields_of_their_size(override):
    """An override of no field, or of another size, is refused: it would shift all that follows."""
    with pytest.raises(InputError, match=r"TD report: no field '\w+' of 4[78] bytes"):
        quoted(fields_override=override)
