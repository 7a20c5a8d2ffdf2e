"""`dstack verify`."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from dstack.attestation.evidence import Evidence, serialise_evidence
from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.roots import INTEL_SGX_ROOT
from dstack.cli.verify import command
from dstack.errors import (
    CollateralUnavailableError,
    ConfigError,
    EvidenceMalformedError,
    InputError,
    PeerUnavailableError,
)
from dstack.keys.certs import build_client_cert, build_temp_ca, spki_der
from dstack.measurement.event_log import RuntimeEvent, logged, serialise_event_log
from dstack.measurement.registers import ZERO_REGISTER
from dstack.measurement.rtmr3 import predict_rtmr3
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.transport.tls import TlsIdentity, server_context
from dstack.values import Register, ReportData

AT = "2020-01-15T08:00:00Z"
EVENT = RuntimeEvent("app-id", bytes(20))
REGISTERS = TdRegisters(
    *(Register(bytes([n]) * 48) for n in range(1, 5)), rtmr3=predict_rtmr3((EVENT,)), mr_config_id=ZERO_REGISTER
)
REFERENCE = {
    "mrtd": REGISTERS.mr_td.hex(),
    "rtmr0": REGISTERS.rtmr0.hex(),
    "rtmr1": REGISTERS.rtmr1.hex(),
    "rtmr2": REGISTERS.rtmr2.hex(),
    "rtmr3": REGISTERS.rtmr3.hex(),
}


@pytest.fixture(scope="module")
def pki() -> SimulatedPki:
    """A simulated platform of 2020."""
    return SimulatedPki.generate(datetime(2020, 1, 15, 8, 0, tzinfo=UTC), b"cli tests")


@pytest.fixture
def files(tmp_path: Path, pki: SimulatedPki) -> Path:
    """Simulated quotes, evidence about the same machine, and what it takes to verify them."""
    pki.save(tmp_path)
    for name, status in (("quote.bin", "UpToDate"), ("stale.bin", "OutOfDate")):
        quote = make_quote(pki, registers=REGISTERS, report_data=ReportData(bytes(64)), tcb_status=status)
        (tmp_path / name).write_bytes(quote)
    (tmp_path / "root.pem").write_bytes(pki.root.public_bytes(Encoding.PEM))
    (tmp_path / "two.pem").write_bytes(2 * pki.root.public_bytes(Encoding.PEM))
    quote, log = (tmp_path / "quote.bin").read_bytes(), (logged(EVENT),)
    (tmp_path / "blob.bin").write_bytes(serialise_evidence(Evidence(quote, log, (EVENT,), ReportData(bytes(64)), "")))
    answer = {"quote": quote.hex(), "event_log": serialise_event_log(log), "vm_config": ""}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    (tmp_path / "reference.json").write_text(json.dumps(REFERENCE))
    return tmp_path


@pytest.fixture(scope="module")
def quotes_folder(project_root: Path) -> Path:
    """The folder of golden quotes."""
    return project_root / "tests" / "vectors" / "quotes"


def run(files: Path, subject: str, *options: str, root: str = "root.der", content: bytes = b"") -> tuple[int, str]:
    """Run the command against the simulated root; returns exit code and output, raises what it raises."""
    path = subject if subject == "-" or "://" in subject else str(files / subject)
    common = ["--collateral", str(files / "collateral.json"), "--root", str(files / root), "--at", AT]
    result = CliRunner(mix_stderr=False).invoke(
        command, [path, *common, *options], standalone_mode=False, input=content
    )
    if result.exception is not None:
        raise result.exception
    return int(result.return_value or 0), result.stdout


def outcomes(output: str, item: int) -> dict[str, str]:
    """What came of the checks of one item, by their names."""
    return {check["name"]: check["outcome"] for check in json.loads(output)["checks"] if check["item"] == item}


def test_a_simulated_quote_is_announced(files):
    """The first line says that the quote is simulated, the last is the verdict, with what it leaves aside."""
    code, output = run(files, "quote.bin")

    assert code == 0
    assert output.startswith("SIMULATED: no Intel CPU stands behind this quote.")
    assert "\nroot                             Simulated SGX Root CA\n" in output
    assert output.endswith("verdict: matched (who signed it; not compared: report data, measurements)\n")


def test_json_has_every_item(files):
    """With --json the answer is one object: all twenty items, the verdict, and what the quote rests on."""
    code, output = run(files, "quote.bin", "--json")
    answer = json.loads(output)

    assert (code, answer["verdict"], answer["verified"], answer["simulated"]) == (0, "matched", True, True)
    assert {check["item"] for check in answer["checks"]} == set(range(1, 21))
    assert {check["outcome"] for check in answer["checks"]} == {"passed", "skipped"}
    assert answer["tcb_status"] == "UpToDate"
    assert (answer["expires_at"], answer["expires_first"]) == ("2020-02-14T08:00:00+00:00", "root CRL")
    assert answer["quote"]["rtmr3"] == REGISTERS.rtmr3.hex()


def test_hexadecimal_standard_input_and_pem_are_taken(files):
    """A quote in hexadecimal, also from standard input, and a root in PEM give the same answer."""
    raw = (files / "quote.bin").read_bytes()
    (files / "quote.hex").write_text(f"0x{raw.hex()}\n")

    expected = run(files, "quote.bin")

    assert run(files, "quote.hex") == expected
    assert run(files, "-", content=raw) == expected
    assert run(files, "quote.bin", root="root.pem") == expected


def test_a_real_quote_needs_no_root(quotes_folder):
    """Without --root Intel's root is trusted, and nothing is called simulated."""
    folder = quotes_folder / "intel-tdx-v4-uptodate"
    arguments = [str(folder / "quote.bin"), "--collateral", str(folder / "collateral.json"), "--json"]

    result = CliRunner().invoke(command, [*arguments, "--at", "2025-07-04T10:24:15Z"], standalone_mode=False)

    answer = json.loads(result.output)
    assert (answer["verdict"], answer["simulated"], answer["root"]) == ("matched", False, "Intel SGX Root CA")


def test_an_sgx_quote_needs_its_enclave(quotes_folder):
    """An SGX quote verifies once its enclave and, for a time, its status are named."""
    folder = quotes_folder / "intel-sgx-v3-hardening"
    enclave = "33d8736db756ed4997e04ba358d27833188f1932ff7b1d156904d3f560452fbb"
    arguments = [
        *(str(folder / "quote.bin"), "--collateral", str(folder / "collateral.json"), "--json"),
        *("--at", "2025-07-04T10:28:44Z", "--mr-enclave", enclave),
    ]
    accept = "ConfigurationAndSWHardeningNeeded@"

    for until, verdict in (("2025-12-31T00:00:00Z", "matched"), ("2025-07-01T00:00:00Z", "mismatched")):
        result = CliRunner().invoke(command, [*arguments, "--accept-status", accept + until], standalone_mode=False)
        answer = json.loads(result.output)
        assert (answer["verdict"], answer["quote"]["mr_enclave"]) == (verdict, enclave)


def test_a_stale_platform_is_told_how_far_it_is(files):
    """A platform that is not up to date fails at item 19 alone; the answer says what is too low, and by how much."""
    code, output = run(files, "stale.bin", "--json")
    answer = json.loads(output)

    assert (code, answer["verdict"], answer["tcb_status"]) == (1, "mismatched", "OutOfDate")
    assert [check["item"] for check in answer["checks"] if check["outcome"] == "failed"] == [19]
    assert answer["distance"][0] == {
        "part": "platform",
        "reached": {"status": "OutOfDate", "date": "2024-03-13", "advisory_ids": ["SIMULATED-SA-00005"]},
        "wanted": {"status": "UpToDate", "date": "2024-03-13", "advisory_ids": []},
        "gaps": [{"component": "TDX component 3", "have": 5, "want": 9}],
        "settled_advisory_ids": ["SIMULATED-SA-00005"],
    }
    assert "TDX component 3: has 5, wants 9, 4 too low" in run(files, "stale.bin")[1]


def test_a_policy_accepts_until_its_end(files):
    """A policy document lets a stale platform in before its end, and not after; an expiry says so."""
    policy = files / "policy.json"
    for until, code in (("2020-01-16T00:00:00Z", 0), ("2020-01-15T08:00:00Z", 1)):
        policy.write_text(json.dumps({"relaxations": [{"accept_status": "OutOfDate", "until": until}]}))
        assert run(files, "stale.bin", "--policy", str(policy))[0] == code
    policy.write_text(json.dumps({"relaxations": [{"accept_status": "OutOfDate", "until": "2020-01-16T00:00:00Z"}]}))
    answer = json.loads(run(files, "stale.bin", "--policy", str(policy), "--json")[1])
    assert (answer["expires_at"], answer["expires_first"]) == ("2020-01-16T00:00:00+00:00", "acceptance of OutOfDate")


@pytest.mark.parametrize("subject", ["blob.bin", "answer.json"])
def test_evidence_with_a_log_needs_a_reference(files, subject):
    """Evidence that brings a log is compared; without anything to compare with the verdict is not computable."""
    code, output = run(files, subject, "--json")
    answer = json.loads(output)
    assert (code, answer["verdict"]) == (3, "not computable")
    assert answer["not_computable"] == ["mrtd", "rtmr0", "rtmr1", "rtmr2"]
    assert outcomes(output, 18)["RTMR3 by its events"] == "passed"

    assert run(files, subject, "--reference", str(files / "reference.json"))[0] == 0
    assert run(files, subject, "--quote-only")[0] == 0


@pytest.mark.parametrize("name", list(REFERENCE))
def test_each_register_is_compared_with_the_reference(files, name):
    """One register other than the reference's is a mismatch that names it; the others are still compared."""
    (files / "other.json").write_text(
        json.dumps({"registers": {**REFERENCE, name: "ff" * 48}, "acpi_tables_verified": True})
    )

    code, output = run(files, "quote.bin", "--reference", str(files / "other.json"), "--json")

    assert (code, json.loads(output)["verdict"]) == (1, "mismatched")
    compared = outcomes(output, 18)
    assert [label for label, outcome in compared.items() if outcome == "failed"] == [name.upper()]
    assert compared["MRCONFIGID"] == "passed"


def test_claimed_acpi_tables_are_no_full_match(files):
    """A measurement whose ACPI digests are the machine's own claim is never a full match."""
    measured = {"registers": REFERENCE, "acpi_tables_verified": False, "not_computable": {}}
    (files / "measured.json").write_text(json.dumps(measured))

    code, output = run(files, "blob.bin", "--reference", str(files / "measured.json"), "--json")

    assert (code, json.loads(output)["not_computable"]) == (3, ["rtmr0"])


def test_report_data_is_compared(files):
    """Report data other than expected is a mismatch at item 17."""
    assert run(files, "quote.bin", "--report-data", "00" * 64)[0] == 0
    code, output = run(files, "quote.bin", "--report-data", "01" * 64, "--json")
    assert (code, outcomes(output, 17)) == (1, {"report data, as expected": "failed"})


def test_evidence_that_lies_about_itself_is_a_mismatch(files):
    """A log that does not fold into RTMR3, or another report data than the quote's, fails by its name."""
    quote = (files / "quote.bin").read_bytes()
    liar = Evidence(quote, (), (RuntimeEvent("app-id", b"\1" * 20),), ReportData(b"\1" * 64), "")
    (files / "liar.bin").write_bytes(serialise_evidence(liar))

    code, output = run(files, "liar.bin", "--reference", str(files / "reference.json"), "--json")

    assert code == 1
    assert outcomes(output, 17) == {"report data, as the evidence says": "failed"}
    assert outcomes(output, 18)["RTMR3 by its events"] == "failed"


def test_an_answer_without_a_log_may_not_lie_about_its_report_data(files):
    """Report data stated beside a quote is compared, whether or not a log came along."""
    answer = {"quote": (files / "quote.bin").read_bytes().hex(), "report_data": "01" * 64}
    (files / "liar.json").write_text(json.dumps(answer))

    code, output = run(files, "liar.json", "--json")

    assert (code, outcomes(output, 17)) == (1, {"report data, as the evidence says": "failed"})
    assert json.loads(output)["not_compared"] == ["measurements"]


def test_two_lists_of_events_must_be_one(files):
    """An event log that shows another app than the events that fold into RTMR3 is a mismatch."""
    other = (logged(RuntimeEvent("app-id", b"\1" * 20)),)
    quote = (files / "quote.bin").read_bytes()
    (files / "two.bin").write_bytes(serialise_evidence(Evidence(quote, other, (EVENT,), ReportData(bytes(64)), "")))

    code, output = run(files, "two.bin", "--reference", str(files / "reference.json"), "--json")

    assert code == 1
    assert [name for name, outcome in outcomes(output, 18).items() if outcome == "failed"] == ["logs"]


def test_an_event_that_hides_a_name_is_a_mismatch(files, pki):
    """An event shown under a longer name folds into the same RTMR3, and is refused all the same."""
    shown, hidden = RuntimeEvent("compose-hash:", b"\2" * 31), RuntimeEvent("compose-hash", b":" + b"\2" * 31)
    assert predict_rtmr3((shown,)) == predict_rtmr3((hidden,))
    registers = replace(REGISTERS, rtmr3=predict_rtmr3((hidden,)))
    quote = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    evidence = Evidence(quote, (logged(shown),), (shown,), ReportData(bytes(64)), "")
    (files / "hidden.bin").write_bytes(serialise_evidence(evidence))
    (files / "same.json").write_text(json.dumps(REFERENCE | {"rtmr3": registers.rtmr3.hex()}))

    code, output = run(files, "hidden.bin", "--reference", str(files / "same.json"), "--json")

    assert code == 1
    assert [name for name, outcome in outcomes(output, 18).items() if outcome == "failed"] == ["what the events name"]


def test_a_register_that_the_reference_lacks_is_not_computable(files):
    """A reference without RTMR3 says nothing of the app, whatever the log says of itself."""
    lacking = {name: value for name, value in REFERENCE.items() if name != "rtmr3"}
    (files / "lacking.json").write_text(json.dumps(lacking))

    code, output = run(files, "blob.bin", "--reference", str(files / "lacking.json"), "--json")

    assert (code, json.loads(output)["not_computable"]) == (3, ["rtmr3"])


@contextmanager
def tls_server(pki: SimulatedPki, *, bound: bool) -> Iterator[str]:
    """A real TLS server that shows an RA-TLS certificate, with evidence for its key or for another's."""
    key, authority = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = build_temp_ca(authority, at=datetime(2020, 1, 15, tzinfo=UTC))
    report_data = ratls_report_data(spki_der(key if bound else authority))
    quote = make_quote(pki, registers=REGISTERS, report_data=report_data)
    evidence = Evidence(quote, (logged(EVENT),), (EVENT,), report_data, "")
    certificate = build_client_cert(
        key, ca, authority, evidence_extensions(evidence), at=datetime(2020, 1, 15, tzinfo=UTC)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    pem = certificate.public_bytes(Encoding.PEM).decode()
    context = server_context(TlsIdentity(pem, private), client_ca_pem=ca.public_bytes(Encoding.PEM).decode())
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve_once, args=(listener, context), daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        thread.join(10)


def _serve_once(listener: socket.socket, context: ssl.SSLContext) -> None:
    try:
        connection, _ = listener.accept()
        connection.settimeout(10)
        with context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(1)
    except OSError:
        return


def test_a_servers_certificate_is_fetched_and_bound_to_its_key(files, pki):
    """Evidence in the certificate of a TLS server must be about the key that the server shook hands with."""
    for bound, code in ((True, 0), (False, 1)):
        with tls_server(pki, bound=bound) as url:
            got, output = run(files, url, "--reference", str(files / "reference.json"), "--json")
        assert got == code
        assert outcomes(output, 17)["report data, bound to the certificate's key"] == ("passed" if bound else "failed")


def test_a_server_that_is_not_there_could_not_be_asked(files):
    """No server, or one without TLS, is "could not ask"; another kind of URL is bad input."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PeerUnavailableError, match=r"no TLS server: .*refused"):
        run(files, f"https://127.0.0.1:{port}")
    for url in ("http://127.0.0.1:1", "https://", "https://[::1", "https://x:99999"):
        with pytest.raises(InputError, match=r"URL: want https://host:port"):
            run(files, url)


def test_collateral_may_lie_in_a_folder(files, tmp_path):
    """A folder is searched for the quote's platform; one without it is "could not ask"."""
    arguments = [str(files / "quote.bin"), "--root", str(files / "root.der"), "--at", AT]
    found = CliRunner().invoke(command, [*arguments, "--collateral", str(files)], standalone_mode=False)
    assert found.return_value in (0, None)

    (tmp_path / "empty").mkdir()
    missing = CliRunner().invoke(command, [*arguments, "--collateral", str(tmp_path / "empty")], standalone_mode=False)
    assert isinstance(missing.exception, CollateralUnavailableError)


def test_a_quote_that_cannot_be_read_is_bad_input(files):
    """A quote cut short in evidence fails at item 2, skips the rest, and exits with 2."""
    quote = (files / "quote.bin").read_bytes()[:2000]
    evidence = Evidence(quote, (), (), ReportData(bytes(64)), "")
    (files / "cut.bin").write_bytes(serialise_evidence(evidence))

    code, output = run(files, "cut.bin", "--json")

    assert (code, outcomes(output, 2)) == (2, {"lengths, certification types, padding": "failed"})
    assert {check["outcome"] for check in json.loads(output)["checks"] if check["item"] > 2} == {"skipped"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("root.der",), EvidenceMalformedError, "want evidence in extension"),
        (("two.pem", "--report-data", "00"), InputError, "want 64 bytes, got 1"),
        (("quote.bin", "--accept-status", "OutOfDate"), InputError, "want STATUS@UNTIL"),
        (("quote.bin", "--accept-status", "Fine@2021-01-01T00:00:00Z"), ConfigError, "want one of UpToDate"),
        (("quote.bin", "--accept-status", "Revoked@2021-01-01T00:00:00Z"), ConfigError, "Revoked cannot be accepted"),
        (("quote.bin", "--accept-status", "OutOfDate@2021-01-01T00:00:00"), ConfigError, "want a time zone"),
        (("quote.bin", "--at", "0001-01-01T00:00:00+01:00"), ConfigError, "want a time in the years 1 to 9999 of UTC"),
        (("quote.bin", "--at", "2025-06-01"), ConfigError, "the Z in 2027-01-15T08:00:00Z, got '2025-06-01'"),
        (("quote.bin", "--at", "noon"), InputError, "want a time such as"),
        (("quote.bin", "--reference", "quote.bin"), InputError, "reference: want UTF-8"),
    ],
)
def test_bad_input_is_named(files, arguments, error, message):
    """What cannot be used is refused before anything is verified."""
    subject, *options = arguments
    options = [str(files / option) if option.endswith(".bin") else option for option in options]
    with pytest.raises(error, match=message):
        run(files, subject, *options)


def test_roots_are_one_certificate_and_never_intels(files):
    """--root takes one certificate, and refuses Intel's: it is trusted without being named, and is not simulated."""
    (files / "intel.der").write_bytes(INTEL_SGX_ROOT.certificate_der)
    with pytest.raises(InputError, match=r"root: want one certificate, got 2"):
        run(files, "quote.bin", root="two.pem")
    with pytest.raises(ConfigError, match=r"Intel's root cannot be taken as a simulated one"):
        run(files, "quote.bin", root="intel.der")


def test_the_clock_is_read_when_no_time_is_given(files):
    """Without --at, now counts: collateral of January 2020 does not serve for ever."""
    arguments = [str(files / "quote.bin"), "--collateral", str(files / "collateral.json"), "--root"]
    result = CliRunner().invoke(command, [*arguments, str(files / "root.der"), "--json"], standalone_mode=False)

    assert result.return_value == 1
    assert "failed" in outcomes(result.output, 4).values()


def test_the_program_exits_with_the_code(files):
    """As a program: 1 for a mismatch with the table on standard output, 2 with one sentence for bad input."""
    base = [sys.executable, "-m", "dstack.cli", "verify", "--collateral", str(files / "collateral.json")]
    base += ["--root", str(files / "root.der"), "--at", AT]
    stale, bad = (
        subprocess.run([*base, str(files / name)], capture_output=True, text=True, check=False)
        for name in ("stale.bin", "root.pem")
    )

    assert (stale.returncode, stale.stderr) == (1, "")
    assert stale.stdout.endswith("verdict: mismatched\n")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("dstack: certificate: want evidence in extension")
