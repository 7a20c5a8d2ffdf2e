"""`dstack replay`: registers of a log, compared with those of a quote."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dstack.cli.replay import command
from dstack.errors import DstackError, EventLogMalformedError, InputError, QuoteMalformedError
from dstack.measurement.registers import replay


@pytest.fixture(scope="module")
def answer(project_root: Path) -> dict[str, Any]:
    """Load the quote and log of a real machine."""
    loaded: dict[str, Any] = json.loads(
        (project_root / "tests" / "vectors" / "measurement" / "real_64gib_gpu.json").read_text()
    )
    return loaded


def get_quote(answer: dict[str, Any], **change: object) -> str:
    """Write a GetQuote answer."""
    return json.dumps({"quote": answer["quote"], "event_log": answer["event_log"], **change})


def changed_log(answer: dict[str, Any], name: str, **change: object) -> str:
    """Write the log with one event changed."""
    events = json.loads(answer["event_log"])
    return json.dumps([event | change if event["event"] == name else event for event in events])


def test_a_log_alone_is_replayed(answer: dict[str, Any]) -> None:
    """Four registers, without a verdict."""
    result = CliRunner(mix_stderr=False).invoke(command, ["-"], input=answer["event_log"])

    registers = answer["replay"]["quote_rtmr"]
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"RTMR{imr} {registers[imr]}" for imr in "0123"]


def test_a_real_answer_is_equal(answer: dict[str, Any]) -> None:
    """Log and quote of one machine agree in all registers."""
    result = CliRunner(mix_stderr=False).invoke(command, ["-"], input=get_quote(answer))

    assert result.exit_code == 0
    assert [line.endswith(" equal") for line in result.stdout.splitlines()] == [True] * 4


@pytest.mark.parametrize("form", ["bytes", "hexadecimal", "0x"])
def test_a_quote_may_come_from_a_file(answer: dict[str, Any], tmp_path: Path, form: str) -> None:
    """As bytes or as hexadecimal."""
    log, quote = tmp_path / "log.json", tmp_path / "quote"
    log.write_text(answer["event_log"])
    hexadecimal = answer["quote"].encode() + b"\n"
    contents = {"bytes": bytes.fromhex(answer["quote"]), "hexadecimal": hexadecimal, "0x": b"0x" + hexadecimal}
    quote.write_bytes(contents[form])

    result = CliRunner(mix_stderr=False).invoke(command, [str(log), "--quote", str(quote), "--json"])

    assert (result.exit_code, json.loads(result.stdout)["all_equal"]) == (0, True)


def test_a_changed_event_is_a_difference(answer: dict[str, Any]) -> None:
    """Exit 1, and the register that differs is shown with both values."""
    log = changed_log(answer, "app-id", event_payload="00" * 20)

    result = CliRunner(mix_stderr=False).invoke(command, ["-"], input=get_quote(answer, event_log=log))

    verdicts = [line.split(" ", 2)[2] for line in result.stdout.splitlines()]
    registers = answer["replay"]["quote_rtmr"]
    assert result.exit_code == 1
    assert verdicts == ["equal"] * 3 + [f"DIFFERENT: the quote has {registers['3']}"]
    assert "warning: event 'app-id': the log's digest is not that of its content" in result.stderr


def test_a_difference_as_json(answer: dict[str, Any]) -> None:
    """Each register has its verdict, and the events are there to be read."""
    log = changed_log(answer, "app-id", event_payload="00" * 20)

    result = CliRunner(mix_stderr=False).invoke(command, ["-", "--json"], input=get_quote(answer, event_log=log))

    facts = json.loads(result.stdout)
    assert result.exit_code == 1
    assert facts["equal"] == {"rtmr0": True, "rtmr1": True, "rtmr2": True, "rtmr3": False}
    assert facts["all_equal"] is False
    assert facts["digest_not_of_content"] == ["app-id"]
    assert facts["runtime_events"][1] == {"event": "app-id", "payload": "00" * 20}


def test_a_lying_digest_changes_nothing(answer: dict[str, Any]) -> None:
    """The content of a runtime event counts: the registers stay equal, and the lie is told."""
    log = changed_log(answer, "app-id", digest="ff" * 48)

    result = CliRunner(mix_stderr=False).invoke(command, ["-"], input=get_quote(answer, event_log=log))

    assert result.exit_code == 0
    assert "warning: event 'app-id'" in result.stderr


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{}", InputError, "want an event log, a quote, an answer of GetQuote or Info, or a measurement"),
        ('{"event_log":"[]","event_log":"[]"}', EventLogMalformedError, "member 'event_log' appears twice"),
        ('{"event_log":"{}"}', EventLogMalformedError, "event log: want a JSON array of events"),
        ('{"event_log":"[]","quote":"xy"}', EventLogMalformedError, "quote: want hexadecimal"),
        ('{"event_log":"[]","quote":"00"}', QuoteMalformedError, "quote"),
        ("", InputError, "want an event log, a quote or an answer that holds them, got nothing"),
        ("[0]", EventLogMalformedError, "event 0: want a JSON object"),
    ],
)
def test_another_file_is_refused(text: str, kind: type[DstackError], message: str) -> None:
    """It is neither a log nor an answer that holds one."""
    result = CliRunner(mix_stderr=False).invoke(command, ["-"], input=text)

    assert isinstance(result.exception, kind)
    assert message in str(result.exception)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The sentence says which."""
    result = CliRunner(mix_stderr=False).invoke(command, [str(tmp_path / "nothing")])

    assert isinstance(result.exception, InputError)
    assert "nothing: cannot be read: No such file" in str(result.exception)


def ccel_log() -> bytes:
    """A CCEL with one event of RTMR1."""
    head = struct.pack("<II20xI", 1, 3, 33) + b"Spec ID Event03\0".ljust(33, b"\0")
    return head + struct.pack("<IIIH", 2, 4, 1, 0xC) + b"d" * 48 + struct.pack("<I", 0) + b"\xff" * 4


def test_a_ccel_is_replayed(tmp_path: Path) -> None:
    """As firmware leaves it, in binary."""
    path = tmp_path / "CCEL"
    path.write_bytes(ccel_log())

    result = CliRunner(mix_stderr=False).invoke(command, [str(path), "--json"])

    assert result.exit_code == 0
    assert json.loads(result.stdout)["rtmr1"] == replay([b"d" * 48]).hex()
    assert json.loads(result.stdout)["rtmr0"] == "00" * 48


def test_an_info_answer_is_compared_with_itself(answer: dict[str, Any]) -> None:
    """The registers that a guest states beside its log; all four are needed."""
    registers = {f"rtmr{imr}": value for imr, value in answer["replay"]["quote_rtmr"].items()}
    info = {"tcb_info": json.dumps({**registers, "event_log": json.loads(answer["event_log"])})}

    result = CliRunner(mix_stderr=False).invoke(command, ["-"], input=json.dumps(info))

    assert [line.endswith(" equal") for line in result.stdout.splitlines()] == [True] * 4
    del registers["rtmr2"]
    info = {"tcb_info": json.dumps({**registers, "event_log": json.loads(answer["event_log"])})}
    refused = CliRunner(mix_stderr=False).invoke(command, ["-"], input=json.dumps(info))
    assert str(refused.exception) == "-: want all of RTMR0 to RTMR3 beside the log, got 3 of them"


def test_a_quote_has_no_log(answer: dict[str, Any]) -> None:
    """So that there is nothing to replay."""
    result = CliRunner(mix_stderr=False).invoke(command, ["-"], input=answer["quote"])

    assert str(result.exception) == "-: it has no event log"
