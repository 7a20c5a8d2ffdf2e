"""`dstack explain`: the first differing event of each register, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dstack.attestation.evidence import serialise_evidence
from dstack.cli import measure
from dstack.cli.explain import command
from dstack.errors import DstackError, InputError
from dstack.measurement.event_log import Event, RuntimeEvent, logged, serialise_event_log
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events
from dstack.values import AppId, ComposeHash
from tests.attested_world import AttestedWorld, attested_world


@pytest.fixture(scope="module")
def world() -> AttestedWorld:
    """Give one simulated maker and image."""
    return attested_world()


def events(**change: Any) -> tuple[RuntimeEvent, ...]:
    """What a machine extends into RTMR3."""
    facts = {"app_id": AppId(b"a" * 20), "compose_hash": ComposeHash(b"c" * 32), "storage_fs": "zfs", **change}
    return boot_events(OUR_SEQUENCE, BootInputs(**facts))


def write_log(folder: Path, name: str, log: Sequence[Event]) -> str:
    """Write an event log, and give its path."""
    (folder / name).write_text(serialise_event_log(log))
    return str(folder / name)


def run(a: str, b: str, *options: str) -> Result:
    """Run the command in this process."""
    return CliRunner(mix_stderr=False).invoke(command, [a, b, *options])


def findings(a: str, b: str, *, code: int) -> dict[str, Any]:
    """The findings by register, the last of each."""
    result = run(a, b, "--json")
    assert result.exit_code == code, (result.exception, result.stdout)
    return {each["register"]: each for each in json.loads(result.stdout)}


def test_equal_logs_are_equal(world: AttestedWorld, tmp_path: Path) -> None:
    """Exit 0, and every register that the log has is said to be equal."""
    log = (*world.image.boot_log(world.image.vm_config()), *map(logged, events()))
    a, b = write_log(tmp_path, "a.json", log), write_log(tmp_path, "b.json", log)

    result = run(a, b)

    assert (result.exit_code, result.stdout.split()) == (
        0,
        ["rtmr0", "equal", "rtmr1", "equal", "rtmr2", "equal", "rtmr3", "equal"],
    )


@pytest.mark.parametrize(
    ("change", "label", "look_at"),
    [
        ({"compose_hash": ComposeHash(b"d" * 32)}, "compose-hash", "the bytes of app-compose.json"),
        ({"app_id": AppId(b"b" * 20)}, "app-id", "the app's address"),
        ({"storage_fs": "ext4"}, "storage-fs", "`storage_fs` of app-compose.json"),
        ({"key_provider": "tpm"}, "key-provider", "the key provider's id"),
    ],
)
def test_a_runtime_event_is_named(tmp_path: Path, change: dict[str, Any], label: str, look_at: str) -> None:
    """The event, both contents, what decides it, and what to look at."""
    a = write_log(tmp_path, "a.json", tuple(map(logged, events())))
    b = write_log(tmp_path, "b.json", tuple(map(logged, events(**change))))

    found = findings(a, b, code=1)["rtmr3"]

    assert (found["outcome"], f", {label}" in found["what"], look_at in found["look_at"]) == ("different", True, True)
    assert found["a"] != found["b"]


@pytest.mark.parametrize(
    ("place", "label"),
    [
        (0, "event 1, TD HOB (memory map)"),
        (1, "event 2, CFV (variable store of the firmware)"),
        (4, "event 5, Secure Boot variable KEK (not set)"),
        (7, "event 8, separator"),
        (9, "event 10, acpi-rsdp"),
        (12, "event 13, boot option Boot0000"),
        (13, "event 1, kernel, as QEMU patched it (Authenticode)"),
        (14, "event 2, action: Calling EFI Application from Boot Option"),
        (18, "event 1, kernel command line"),
        (19, "event 2, initrd"),
    ],
)
def test_a_boot_event_is_named_by_its_place(world: AttestedWorld, tmp_path: Path, place: int, label: str) -> None:
    """A log does not say what its boot events are; their order does."""
    log = list(world.image.boot_log(world.image.vm_config()))
    other = list(log)
    other[place] = replace(other[place], digest=b"x" * 48)

    found = findings(write_log(tmp_path, "a.json", log), write_log(tmp_path, "b.json", other), code=1)

    finding = found[f"rtmr{log[place].imr}"]
    assert (finding["what"], finding["a"], finding["b"]) == (label, log[place].digest.hex(), (b"x" * 48).hex())
    assert [each["outcome"] for each in found.values()].count("different") == 1


def test_an_event_that_only_one_side_has_is_named(tmp_path: Path) -> None:
    """Also one that an app made up, whose name cannot steer a terminal."""
    more = (*events(), RuntimeEvent("\x1b[31mred", b"payload"))
    a, b = (
        write_log(tmp_path, "a.json", tuple(map(logged, events()))),
        write_log(tmp_path, "b.json", tuple(map(logged, more))),
    )

    result = run(a, b)

    assert result.exit_code == 1
    assert "only the right side has it" in result.stdout
    assert "\x1b" not in result.stdout


def test_an_unknown_boot_event_is_said_to_be_unknown(world: AttestedWorld, tmp_path: Path) -> None:
    """One of another type at a known place is not given the known name."""
    log = list(world.image.boot_log(world.image.vm_config()))
    other = [replace(log[0], event_type=0x77), *log[1:]]
    other[0] = replace(other[0], digest=b"y" * 48)

    found = findings(write_log(tmp_path, "a.json", log), write_log(tmp_path, "b.json", other), code=1)

    assert found["rtmr0"]["what"] == "event 1: TD HOB (memory map) against unexpected event of type 0x77"


def test_two_shapes_of_one_image_are_told_apart(world: AttestedWorld, tmp_path: Path) -> None:
    """From two measurements: the first byte of the TD HOB that differs, and the memory size to look at."""
    world.image.save(tmp_path / "image")
    log = write_log(tmp_path, "log.json", world.image.boot_log(world.image.vm_config()))
    for memory in ("3G", "4G"):
        arguments = [str(tmp_path / "image"), "--memory", memory, "--acpi", f"from-log:{log}", "--json"]
        result = CliRunner(mix_stderr=False).invoke(measure.command, arguments)
        (tmp_path / memory).write_text(result.stdout)

    found = findings(str(tmp_path / "3G"), str(tmp_path / "4G"), code=1)

    assert found["rtmr0"]["what"] == "event 1, TD HOB (memory map); what was measured parts at byte 483"
    assert "`memory_size` of the VM config" in found["rtmr0"]["look_at"]
    assert {name: each["outcome"] for name, each in found.items()} == {
        **dict.fromkeys(("mrtd", "rtmr1", "rtmr2", "mr_owner", "mr_owner_config"), "equal"),
        "rtmr0": "different",
    }


def test_borrowed_acpi_digests_prove_nothing(world: AttestedWorld, tmp_path: Path) -> None:
    """RTMR0 that is equal because its ACPI digests came from the machine's own log is no match, from either side."""
    world.image.save(tmp_path / "image")
    log = write_log(tmp_path, "log.json", world.image.boot_log(world.image.vm_config()))
    shape = ["--memory", "2G", "--cpus", "2"]
    arguments = [str(tmp_path / "image"), *shape, "--acpi", f"from-log:{log}", "--json"]
    ours = tmp_path / "ours.json"
    ours.write_text(CliRunner(mix_stderr=False).invoke(measure.command, arguments).stdout)

    for a, b in ((str(ours), log), (log, str(ours))):
        found = findings(a, b, code=3)
        assert {name: each["outcome"] for name, each in found.items() if name.startswith("rtmr")} == {
            "rtmr0": "not comparable",
            "rtmr1": "equal",
            "rtmr2": "equal",
        }
        assert found["rtmr0"]["what"] == f"they are equal, but {ours} took its ACPI digests from a machine's own log"
    assert found["rtmr0"]["a"] == found["rtmr0"]["b"] != ""

    verified = json.loads(ours.read_text()) | {"acpi_tables_verified": True}
    ours.write_text(json.dumps(verified))
    assert findings(str(ours), log, code=3)["rtmr0"]["outcome"] == "equal"


def test_a_log_of_another_boot_is_noticed(world: AttestedWorld, tmp_path: Path) -> None:
    """A GetQuote answer whose log was changed contradicts its own quote, and the changed event is found."""
    evidence = world.evidence(events())
    answer = {"quote": evidence.quote.hex(), "event_log": serialise_event_log(evidence.event_log)}
    forged = events(compose_hash=ComposeHash(b"d" * 32))
    changed = (*world.image.boot_log(world.image.vm_config()), *map(logged, forged))
    (tmp_path / "a.json").write_text(json.dumps(answer))
    (tmp_path / "b.json").write_text(json.dumps({**answer, "event_log": serialise_event_log(changed)}))

    result = run(str(tmp_path / "a.json"), str(tmp_path / "b.json"))

    assert result.exit_code == 1
    assert "does not fold into the rtmr3 it comes with" in result.stdout
    assert "the registers are equal, and the logs part at event 3, compose-hash" in result.stdout


def test_quotes_and_blobs_are_read(world: AttestedWorld, tmp_path: Path) -> None:
    """A bare quote has registers and no events; an attestation blob has both."""
    evidence = world.evidence(events())
    (tmp_path / "quote").write_bytes(evidence.quote)
    (tmp_path / "quote.hex").write_text(evidence.quote.hex())
    (tmp_path / "blob").write_bytes(serialise_evidence(evidence))
    other = world.evidence(events(storage_fs="ext4"))
    (tmp_path / "other").write_bytes(other.quote)

    assert findings(str(tmp_path / "quote"), str(tmp_path / "blob"), code=0)["rtmr3"]["outcome"] == "equal"
    assert findings(str(tmp_path / "quote.hex"), str(tmp_path / "blob"), code=0)["mrtd"]["outcome"] == "equal"
    found = findings(str(tmp_path / "other"), str(tmp_path / "blob"), code=1)["rtmr3"]
    assert found["what"] == f"the registers differ, and {tmp_path / 'other'} has no events of it to compare"


def test_an_info_of_a_guest_is_read(world: AttestedWorld, tmp_path: Path) -> None:
    """Its tcb_info holds registers and a log; a register that only one side states leaves the answer open: exit 3."""
    log = world.evidence(events()).event_log
    info = {"mrtd": "00" * 48, "event_log": json.loads(serialise_event_log(log))}
    (tmp_path / "info").write_text(json.dumps({"tcb_info": json.dumps(info)}))

    found = findings(str(tmp_path / "info"), write_log(tmp_path, "log", log), code=3)

    assert found["rtmr3"]["outcome"] == "equal"
    assert found["mrtd"]["outcome"] == "not comparable"


def test_nothing_in_common_is_no_answer(tmp_path: Path) -> None:
    """A log of RTMR3 and one of RTMR0 share no register: exit 3."""
    a = write_log(tmp_path, "a", tuple(map(logged, events())))
    b = write_log(tmp_path, "b", (Event(0, 4, b"d" * 48, "", b""),))

    assert {each["outcome"] for each in findings(a, b, code=3).values()} == {"not comparable"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got nothing"),
        ("{}", "want an event log, a quote, an answer of GetQuote or Info, or a measurement"),
        ('{"registers":{"rtmr9":"00"},"events":[]}', "registers: unknown member 'rtmr9'"),
        ('{"registers":{"rtmr0":"00"},"events":[]}', "rtmr0: Register: want 48 bytes, got 1"),
        ('{"registers":{},"events":{}}', "events: want a list of at most 4096"),
        ('{"registers":{},"events":[{}]}', "event 0: member 'imr' is missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    """Each with what was wanted."""
    (tmp_path / "a").write_text(content)

    result = run(str(tmp_path / "a"), str(tmp_path / "a"))

    assert isinstance(result.exception, DstackError)
    assert message in str(result.exception)


def test_a_label_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """Labels of a measurement that somebody else wrote are told without their control characters."""
    label = "\x1b[2K\rrtmr1 equal"
    for name, digest in (("a", "0a"), ("b", "0b")):
        event = {"imr": 1, "event_type": 4, "digest": digest * 48, "event": "", "event_payload": "", "label": label}
        (tmp_path / name).write_text(json.dumps({"registers": {}, "events": [event]}))

    shown = run(str(tmp_path / "a"), str(tmp_path / "b")).stdout

    assert "rtmr1           different: event 1, ?[2K?rtmr1 equal" in shown
    assert "\x1b" not in shown


def test_standard_input_can_be_one_of_the_two() -> None:
    """Not both."""
    with pytest.raises(InputError, match="only one of the two can be standard input"):
        CliRunner().invoke(command, ["-", "-"], catch_exceptions=False)


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    """Two empty logs are not equal: exit 3, in words and in JSON."""
    a, b = write_log(tmp_path, "a.json", ()), write_log(tmp_path, "b.json", ())

    in_words, in_json = run(a, b), run(a, b, "--json")

    assert (in_words.exit_code, in_words.stdout) == (
        3,
        "not comparable: neither of the two has a register or an event\n",
    )
    assert (in_json.exit_code, in_json.stdout) == (3, "[]\n")
