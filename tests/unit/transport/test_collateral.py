"""Collateral from a directory."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dstack.attestation.collateral import serialise_collateral
from dstack.attestation.quote import Quote, parse_quote
from dstack.errors import CollateralMalformedError, CollateralUnavailableError
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.transport.collateral import DirectoryCollateral
from dstack.values import ReportData

PKI = SimulatedPki.generate(datetime(2027, 1, 15, tzinfo=UTC), seed=b"tests")
OURS, OTHERS = PKI.collateral(), PKI.collateral(datetime(2027, 1, 16, tzinfo=UTC))
OWN_NAME = f"{PKI.platform.fmspc.hex()}.json"


@pytest.fixture(scope="module")
def quote() -> Quote:
    """A quote of the simulated platform."""
    registers = TdRegisters(*[ZERO_REGISTER] * 5)
    return parse_quote(make_quote(PKI, registers=registers, report_data=ReportData(bytes(64))))


def test_file_of_the_platform_comes_first(tmp_path: Path, quote: Quote) -> None:
    """A file named for the quote's FMSPC is taken before the one for all."""
    (tmp_path / OWN_NAME).write_text(serialise_collateral(OURS))
    (tmp_path / "collateral.json").write_text(serialise_collateral(OTHERS))

    assert DirectoryCollateral(tmp_path).collateral_for(quote) == OURS


def test_file_for_all_serves_every_platform(tmp_path: Path, quote: Quote) -> None:
    """Without one of its own, a platform gets `collateral.json`; files are read anew each time."""
    source = DirectoryCollateral(tmp_path)
    (tmp_path / "collateral.json").write_text(serialise_collateral(OURS))
    first = source.collateral_for(quote)
    (tmp_path / "collateral.json").write_text(serialise_collateral(OTHERS))

    assert (first, source.collateral_for(quote)) == (OURS, OTHERS)


def test_missing_collateral_is_unavailable(tmp_path: Path, quote: Quote) -> None:
    """Neither file: the error names both, and is no refusal of the quote."""
    with pytest.raises(CollateralUnavailableError, match=f"want {OWN_NAME} or collateral.json in {tmp_path}"):
        DirectoryCollateral(tmp_path).collateral_for(quote)


def test_unreadable_collateral_is_unavailable(tmp_path: Path, quote: Quote) -> None:
    """A directory or a pipe in the place of the file is not read; nobody waits for a writer."""
    (tmp_path / OWN_NAME).mkdir()
    with pytest.raises(CollateralUnavailableError, match="want a plain file, got something else"):
        DirectoryCollateral(tmp_path).collateral_for(quote)

    (tmp_path / OWN_NAME).rmdir()
    os.mkfifo(tmp_path / OWN_NAME)
    with pytest.raises(CollateralUnavailableError, match="want a plain file, got something else"):
        DirectoryCollateral(tmp_path).collateral_for(quote)


def test_a_link_in_the_inbox_of_the_host_is_not_followed(tmp_path: Path, quote: Quote) -> None:
    """Whoever fills the folder cannot have another file read, not even one that holds collateral."""
    (tmp_path / "elsewhere").write_text(serialise_collateral(OURS))
    (tmp_path / OWN_NAME).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CollateralUnavailableError, match="symbolic link"):
        DirectoryCollateral(tmp_path).collateral_for(quote)


def test_oversized_collateral_is_unavailable(tmp_path: Path, quote: Quote) -> None:
    """No more is read than collateral can have."""
    (tmp_path / OWN_NAME).write_bytes(b" " * ((4 << 20) + 1))

    with pytest.raises(CollateralUnavailableError, match="want at most 4194304 bytes, got more"):
        DirectoryCollateral(tmp_path).collateral_for(quote)


def test_malformed_collateral_is_named(tmp_path: Path, quote: Quote) -> None:
    """A file that is something else is malformed."""
    (tmp_path / OWN_NAME).write_text("{}")

    with pytest.raises(CollateralMalformedError, match="collateral"):
        DirectoryCollateral(tmp_path).collateral_for(quote)
