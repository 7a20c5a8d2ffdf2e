"""`dstack collateral fetch`, `show` and `check`, over real services and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dstack.attestation.collateral import parse_collateral
from dstack.cli.collateral import command
from dstack.cli.collateral_facts import facts_of, print_facts
from dstack.errors import (
    CollateralMalformedError,
    CollateralTransientError,
    CollateralUnavailableError,
    InputError,
    QuoteUntrustedError,
    RefusedError,
)
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pccs import Behaviour
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import ReportData
from tests.pccs_world import BORN, Clock, PccsWorld, pccs_world

FMSPC = "50806f000000"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PccsWorld]:
    """A maker of now, for the command line has no other clock; its root and a quote are files."""
    now = datetime.now(UTC).replace(microsecond=0)
    with pccs_world(tmp_path / "store") as made:
        made.pki, made.clock = SimulatedPki.generate(now, seed=b"cli"), Clock(now)
        (tmp_path / "root.der").write_bytes(made.pki.root_der)
        (tmp_path / "quote.bin").write_bytes(quote_of(made.pki))
        yield made


def quote_of(pki: SimulatedPki) -> bytes:
    """A quote of the maker's platform."""
    return make_quote(pki, registers=TdRegisters(*[ZERO_REGISTER] * 5), report_data=ReportData(bytes(64)))


def run(world: PccsWorld, *arguments: str, root: bool = True) -> Result:
    """Run a sub-command in the world's folder, trusting its root."""
    folder = world.folder.parent
    given = [argument.replace("@", f"{folder}/") for argument in arguments]
    trust = ["--root", f"{folder}/root.der"] if root else []
    return CliRunner().invoke(command, [*given, *trust])


def error(result: Result) -> BaseException:
    """What a command raised."""
    assert result.exception is not None, result.output
    return result.exception


def test_fetched_collateral_is_a_file_and_is_good(world: PccsWorld) -> None:
    """For a quote: what is written is what the maker says, and `check` finds it good for that quote."""
    url = world.serve(Behaviour())
    fetched = run(world, "fetch", "@quote.bin", "--from", url, "--out", "@c.json")
    checked = run(world, "check", "@c.json", "--quote", "@quote.bin", "--json")

    assert fetched.exit_code == 0, fetched.output
    assert parse_collateral((world.folder.parent / "c.json").read_bytes()).tcb_info == (
        world.pki.collateral(world.clock.now).tcb_info
    )
    facts = json.loads(checked.stdout)
    assert (facts["verified"], facts["for_quote"], facts["fmspc"], facts["root_kind"]) == (
        True,
        True,
        FMSPC,
        "simulated",
    )
    assert facts["first_to_end"] == "TCB info"


def test_evidence_of_every_form_names_the_platform(world: PccsWorld) -> None:
    """A quote in hexadecimal, and an answer of GetQuote."""
    url = world.serve(Behaviour())
    hexadecimal = quote_of(world.pki).hex()
    (world.folder.parent / "quote.hex").write_text(hexadecimal)
    (world.folder.parent / "answer.json").write_text(json.dumps({"quote": hexadecimal, "event_log": "[]"}))

    for name in ("@quote.hex", "@answer.json"):
        assert run(world, "fetch", name, "--from", url, "--out", "@c.json").exit_code == 0


def test_a_store_keeps_versions_that_can_be_checked_at_their_time(world: PccsWorld) -> None:
    """Two fetches; a check at a time is of what was in force then; a number that goes back is refused."""
    behaviour = Behaviour()
    url = world.serve(behaviour)
    fetch = ("fetch", "--fmspc", FMSPC, "--from", url, "--store", "@store")
    assert run(world, *fetch, "--json").exit_code == 0
    behaviour.evaluation_number += 1
    second = json.loads(run(world, *fetch, "--json").stdout.splitlines()[-1])

    checked = json.loads(run(world, "check", "@store", "--quote", "@quote.bin", "--json").stdout)
    assert checked["evaluation_number"] == second["evaluation_number"] == behaviour.evaluation_number
    later = (world.clock.now + timedelta(days=40)).isoformat()
    with pytest.raises(QuoteUntrustedError, match=r"step 4: CRL of .*in force"):
        raise error(run(world, "check", "@store", "--quote", "@quote.bin", "--at", later))

    behaviour.evaluation_number -= 1
    with pytest.raises(RefusedError, match="TCB info: want number 19 or more, as seen before, got 18"):
        raise error(run(world, *fetch))


def test_nobody_answers_is_neither_yes_nor_no(world: PccsWorld) -> None:
    """Exit code 3, and no file."""
    failed = error(run(world, "fetch", "--fmspc", FMSPC, "--from", "http://127.0.0.1:1", "--out", "@c.json"))

    with pytest.raises(CollateralTransientError, match="no answer"):
        raise failed
    assert failed.exit_code == 3
    assert not (world.folder.parent / "c.json").exists()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (Behaviour(wrong_signer=True), "step 5: TCB info: its signature does not verify"),
        (Behaviour(status=404), "status 404: it knows no such platform"),
    ],
)
def test_what_does_not_hold_is_refused_and_not_written(world: PccsWorld, behaviour: Behaviour, message: str) -> None:
    """Exit code 1, and no file."""
    failed = error(run(world, "fetch", "@quote.bin", "--from", world.serve(behaviour), "--out", "@c.json"))

    with pytest.raises(RefusedError, match=message):
        raise failed
    assert failed.exit_code == 1
    assert not (world.folder.parent / "c.json").exists()


def test_intels_root_is_the_default(world: PccsWorld) -> None:
    """A simulator's statements are refused unless --root names it."""
    failed = error(
        run(world, "fetch", "@quote.bin", "--from", world.serve(Behaviour()), "--out", "@c.json", root=False)
    )

    with pytest.raises(RefusedError, match=r"step 4: .*the last being 'Simulated SGX Root CA'"):
        raise failed


def test_show_says_every_date_and_verifies_nothing(world: PccsWorld) -> None:
    """What has run out is marked, a root nobody named is no root of trust, and the first line says what it is worth."""
    run(world, "fetch", "@quote.bin", "--from", world.serve(Behaviour()), "--out", "@c.json")
    at = (world.clock.now + timedelta(days=31)).isoformat()

    shown = run(world, "show", "@c.json", "--at", at, root=False)
    facts = json.loads(run(world, "show", "@c.json", "--json").stdout)

    assert shown.stdout.startswith("not verified: this is what the file says\n")
    assert "Simulated SGX Root CA (not a root of trust here)" in shown.stdout
    assert [line.split("  ")[0] for line in shown.stdout.splitlines() if "NOT IN FORCE" in line] == [
        "TCB info",
        "QE identity",
        "root CRL",
        "PCK CRL",
    ]
    assert facts["verified"] is False
    assert [part["name"] for part in facts["parts"]] == [
        "TCB info",
        "QE identity",
        "root CRL",
        "PCK CRL",
        "certificate Simulated SGX PCK Platform CA",
        "certificate Simulated SGX Root CA",
        "certificate Simulated SGX TCB Signing",
    ]


def test_a_certificates_name_cannot_steer_a_terminal(world: PccsWorld, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that are not verified are told without their control characters."""
    facts = facts_of(world.pki.collateral(BORN), world.roots)
    part = replace(facts.parts[0], name="\x1b[2K", signer="\x1b[1A")

    print_facts(replace(facts, root="\rIntel SGX Root CA", parts=(part, *facts.parts[1:])), at=BORN)

    shown = capsys.readouterr().out
    assert "root         ?Intel SGX Root CA (SIMULATED" in shown
    assert "?[2K" in shown
    assert "?[1A" in shown
    assert not {"\x1b", "\r"} & set(shown)


def test_real_collateral_is_shown_and_was_good(project_root: Path) -> None:
    """Intel's own, of a golden quote, at a time when it was in force; not before, and for no other quote."""
    folders = project_root / "tests" / "vectors" / "quotes"
    ours, other = folders / "intel-tdx-v4-uptodate", folders / "intel-sgx-v3-hardening"
    file, quote = str(ours / "collateral.json"), str(ours / "quote.bin")
    facts = json.loads(CliRunner().invoke(command, ["show", file, "--json"]).stdout)
    assert facts["root_kind"] == "intel"
    begins = max(datetime.fromisoformat(part["issued_at"]) for part in facts["parts"])

    good = CliRunner().invoke(command, ["check", file, "--quote", quote, "--at", begins.isoformat()])
    assert good.exit_code == 0, good.exception
    early = (begins - timedelta(seconds=1)).isoformat()
    assert CliRunner().invoke(command, ["check", file, "--at", early]).exit_code == 1
    foreign = ["check", file, "--quote", str(other / "quote.bin"), "--at", begins.isoformat()]
    with pytest.raises(RefusedError, match="want"):
        raise error(CliRunner().invoke(command, foreign))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["fetch", "--out", "@c.json"], InputError, "want QUOTE or --fmspc, one of them"),
        (["fetch", "@quote.bin", "--fmspc", FMSPC, "--out", "@c.json"], InputError, "want QUOTE or --fmspc"),
        (["fetch", "@quote.bin"], InputError, "want --store DIR or --out FILE, one of them"),
        (["fetch", "--fmspc", "50806f", "--out", "@c.json"], InputError, "FMSPC: want 6 bytes, got 3"),
        (["fetch", "--fmspc", FMSPC, "--from", "http://a.example", "--out", "@c"], InputError, "want https"),
        (["check", "@quote.bin"], CollateralMalformedError, "collateral: want UTF-8|not JSON"),
        (["check", "@."], InputError, "want --quote to choose one"),
        (
            ["check", "@.", "--quote", "@quote.bin"],
            CollateralUnavailableError,
            f"want collateral for .*{FMSPC}, got none",
        ),
        (["show", "@missing.json"], InputError, "cannot be read"),
        (["show", "@quote.bin", "--at", "noon"], CollateralMalformedError, "collateral"),
    ],
)
def test_bad_input_is_named(world: PccsWorld, arguments: list[str], kind: type[Exception], message: str) -> None:
    """One sentence says what was wanted."""
    with pytest.raises(kind, match=message):
        raise error(run(world, *arguments))
