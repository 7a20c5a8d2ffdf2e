"""The simulated maker: certificates, collateral, files."""

from __future__ import annotations

import stat
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest

from dstack.attestation.collateral import parse_collateral
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.tcb import LEVEL_STATUSES, TcbStatus, parse_tcb_info
from dstack.attestation.verify import verify_quote
from dstack.errors import InputError, QuoteUntrustedError
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pki import SimulatedKeys, SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.simulator.statements import STATUS_SVN
from dstack.values import ReportData

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
REGISTERS = TdRegisters(*[ZERO_REGISTER] * 5)


def quote(pki: SimulatedPki) -> bytes:
    """A quote of nothing in particular."""
    return make_quote(pki, registers=REGISTERS, report_data=ReportData(bytes(64)))


def test_a_seed_determines_every_byte():
    """Two PKIs of one seed and time make the same chain, collateral and quotes; of another seed, others."""
    one, same, other = (SimulatedPki.generate(AT, seed) for seed in (b"a", b"a", b"b"))

    assert one.pck_chain_pem == same.pck_chain_pem
    assert one.collateral() == same.collateral()
    assert quote(one) == quote(same)
    assert one.root_der != other.root_der
    assert one.platform.ppid != other.platform.ppid


def test_without_a_seed_keys_are_random():
    """Two PKIs without a seed share no key and no platform."""
    one, other = SimulatedPki.generate(AT), SimulatedPki.generate(AT)

    assert one.root_der != other.root_der
    assert one.platform.ppid != other.platform.ppid


def test_what_is_saved_is_loaded(tmp_path):
    """A saved PKI is loaded as the same, its keys readable by their owner alone, its collateral beside them."""
    pki = SimulatedPki.generate(AT, b"a")
    pki.save(tmp_path / "pki")

    loaded = SimulatedPki.load(tmp_path / "pki")

    assert loaded.root_der == (tmp_path / "pki" / "root.der").read_bytes() == pki.root_der
    assert loaded.born_at == AT
    assert quote(loaded) == quote(pki)
    assert parse_collateral((tmp_path / "pki" / "collateral.json").read_bytes()) == loaded.collateral()
    modes = {stat.S_IMODE((tmp_path / "pki" / f"{field.name}.key").stat().st_mode) for field in fields(SimulatedKeys)}
    assert modes == {0o600}


def test_a_folder_that_is_no_pki_is_refused(tmp_path):
    """A missing file, or one that holds something else, is an input error."""
    SimulatedPki.generate(AT, b"a").save(tmp_path)
    (tmp_path / "pck.key").write_text("not a key")
    with pytest.raises(InputError, match=r"simulated PKI: want the files that `pki` writes"):
        SimulatedPki.load(tmp_path)
    with pytest.raises(InputError, match=r"simulated PKI: want the files that `pki` writes"):
        SimulatedPki.load(tmp_path / "nowhere")


def test_collateral_can_be_renewed():
    """After 30 days the first collateral is refused, and one issued later is taken."""
    pki = SimulatedPki.generate(AT, b"a")
    roots, later = TrustedRoots((simulated_root(pki.root_der),)), AT + timedelta(days=31)

    with pytest.raises(QuoteUntrustedError, match=r"step 4"):
        verify_quote(quote(pki), pki.collateral(), roots=roots, at=later)
    verified = verify_quote(quote(pki), pki.collateral(later), roots=roots, at=later)

    assert verified.expires_at == later + timedelta(days=30)


def test_times_are_kept_to_the_second():
    """Microseconds are dropped, so that a quote verifies at the very moment its PKI was made."""
    at = AT.replace(microsecond=999_999)
    pki = SimulatedPki.generate(at)

    verified = verify_quote(quote(pki), pki.collateral(), roots=TrustedRoots((simulated_root(pki.root_der),)), at=at)

    assert pki.born_at == AT
    assert verified.tcb_status is TcbStatus.UP_TO_DATE


def test_every_status_has_a_level():
    """The collateral has one level per TCB status, each with its own component 2, the best the highest."""
    assert list(STATUS_SVN.items()) == list(zip(LEVEL_STATUSES, range(9, 2, -1), strict=True))
    assert parse_tcb_info(SimulatedPki.generate(AT).collateral().tcb_info).evaluation_number == 18
