"""`dstack verify-quote`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.roots import INTEL_SGX_ROOT
from dstack.cli.verify_quote import command
from dstack.errors import ConfigError, InputError, QuoteMalformedError, QuoteUntrustedError
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import ReportData

AT = "2020-01-15T08:00:00Z"


@pytest.fixture
def files(tmp_path) -> Path:
    """A simulated quote and what it takes to verify it."""
    pki = SimulatedPki.generate(datetime(2020, 1, 15, 8, 0, tzinfo=UTC), b"cli tests")
    pki.save(tmp_path)
    registers = TdRegisters(*[ZERO_REGISTER] * 5)
    for name, status in (("quote.bin", "UpToDate"), ("stale.bin", "OutOfDate")):
        quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)), tcb_status=status)
        (tmp_path / name).write_bytes(quote)
    (tmp_path / "root.pem").write_bytes(pki.root.public_bytes(Encoding.PEM))
    (tmp_path / "two.pem").write_bytes(2 * pki.root.public_bytes(Encoding.PEM))
    return tmp_path


@pytest.fixture(scope="module")
def quotes_folder(project_root) -> Path:
    """The folder of golden quotes."""
    return project_root / "tests" / "vectors" / "quotes"


def run(files: Path, quote: str = "quote.bin", *options: str, root: str = "root.der", content: bytes = b"") -> str:
    """Run the command against the simulated root; returns what it prints, raises what it raises."""
    path = quote if quote == "-" else str(files / quote)
    arguments = [path, "--collateral", str(files / "collateral.json"), "--root", str(files / root), *options]
    result = CliRunner().invoke(command, arguments, standalone_mode=False, input=content)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_simulated_quote_is_announced(files):
    """The first line says that the quote is simulated; the answer names status and root."""
    output = run(files, "quote.bin", "--at", AT)

    assert output.startswith("SIMULATED: no Intel CPU stands behind this quote.")
    assert "\ntcb status         UpToDate\n" in output
    assert "\nroot               Simulated SGX Root CA\n" in output


def test_json_says_the_same(files):
    """With --json the answer is one object, with the registers, and says that the quote is simulated."""
    answer = json.loads(run(files, "quote.bin", "--at", AT, "--json"))

    assert (answer["verified"], answer["simulated"], answer["tcb_status"]) == (True, True, "UpToDate")
    assert answer["rtmr3"] == "00" * 48
    assert answer["expires_at"] == "2020-02-14T08:00:00+00:00"


def test_hexadecimal_standard_input_and_pem_are_taken(files):
    """A quote in hexadecimal, also from standard input, and a root in PEM give the same answer."""
    raw = (files / "quote.bin").read_bytes()
    (files / "quote.hex").write_text(f"0x{raw.hex()}\n")

    expected = run(files, "quote.bin", "--at", AT)

    assert run(files, "quote.hex", "--at", AT) == expected
    assert run(files, "-", "--at", AT, content=raw) == expected
    assert run(files, "quote.bin", "--at", AT, root="root.pem") == expected


def test_a_real_quote_needs_no_root(quotes_folder):
    """Without --root Intel's root is trusted, and nothing is called simulated."""
    folder = quotes_folder / "intel-tdx-v4-uptodate"
    arguments = [str(folder / "quote.bin"), "--collateral", str(folder / "collateral.json")]

    result = CliRunner().invoke(command, [*arguments, "--at", "2025-07-04T10:24:15Z"], standalone_mode=False)

    assert result.exception is None
    assert result.output.startswith("verified           yes\nsimulated          no\n")


def test_an_sgx_quote_needs_its_enclave(quotes_folder):
    """An SGX quote verifies once its enclave and its status are named, and the answer shows the enclave."""
    folder = quotes_folder / "intel-sgx-v3-hardening"
    enclave = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
    arguments = [
        *(str(folder / "quote.bin"), "--collateral", str(folder / "collateral.json"), "--json"),
        *("--at", "2025-07-04T10:28:44Z", "--mr-enclave", enclave),
        *("--accept-status", "ConfigurationAndSWHardeningNeeded"),
    ]

    result = CliRunner().invoke(command, arguments, standalone_mode=False)

    assert json.loads(result.output)["mr_enclave"] == enclave


def test_statuses_are_accepted_by_name(files):
    """A stale platform is refused by default and accepted when its status is named; UpToDate stays accepted."""
    with pytest.raises(QuoteUntrustedError, match=r"step 19: TCB status OutOfDate .* is not accepted"):
        run(files, "stale.bin", "--at", AT)

    assert "OutOfDate" in run(files, "stale.bin", "--at", AT, "--accept-status", "OutOfDate")
    assert "UpToDate" in run(files, "quote.bin", "--at", AT, "--accept-status", "OutOfDate")


def test_the_clock_is_read_when_no_time_is_given(files):
    """Without --at, now counts: collateral of January 2020 does not serve for ever."""
    with pytest.raises(QuoteUntrustedError, match=r"step 4: .*not at "):
        run(files)


@pytest.mark.parametrize(
    ("at", "message"), [("noon", "want a time such as"), ("2020-01-15T08:00:00", "want a time zo")]
)
def test_a_time_has_a_zone(files, at, message):
    """A time that cannot be read, or without a zone, is an input error."""
    with pytest.raises(InputError, match=f"--at: {message}"):
        run(files, "quote.bin", "--at", at)


def test_files_that_are_something_else_are_refused(files):
    """A quote that is none, and a root file of two certificates, are input errors."""
    with pytest.raises(QuoteMalformedError, match=r"quote: want 1000 to 65536 bytes"):
        run(files, "root.der", "--at", AT)
    with pytest.raises(InputError, match=r"root: want one certificate, got 2"):
        run(files, "quote.bin", root="two.pem")


def test_intels_root_cannot_be_given_as_a_simulated_one(files):
    """--root refuses Intel's root: it is trusted without being named, and is not simulated."""
    (files / "intel.der").write_bytes(INTEL_SGX_ROOT.certificate_der)
    with pytest.raises(ConfigError, match=r"Intel's root cannot be taken as a simulated one"):
        run(files, "quote.bin", root="intel.der")
