"""Where ACPI digests come from: a paused stock QEMU, a store of captured tables, a program."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dstack.errors import InputError, MeasurementMalformedError, ToolUnavailableError
from dstack.measurement.acpi import MAX_TABLES_BLOB, AcpiSource, derive_acpi_blobs
from dstack.measurement.acpi_store import MAX_INDEX, AcpiShape, parse_store_index
from dstack.measurement.vm_config import VmConfig
from dstack.values import OsImageHash
from dstack.vmm import acpi_sources, qtest
from dstack.vmm.qemu import helper_arguments, own_qemu_arguments
from tests.image_parts import acpi_tables

CONFIG = VmConfig(os_image_hash=OsImageHash(bytes(32)), cpu_count=2, memory_size=2**31)
needs_qemu = pytest.mark.skipif(shutil.which(qtest.DEFAULT_QEMU) is None, reason="qemu-system-x86 is not installed")


@needs_qemu
def test_a_stock_qemu_hands_out_tables_that_belong_together() -> None:
    """Pointer and loader of the real QEMU are, byte for byte, those that we derive from its tables."""
    digests = qtest.own_qemu_digests(CONFIG)

    assert digests.source is AcpiSource.OWN_QEMU
    assert digests.detail.startswith("QEMU emulator version ")
    assert digests.by_name == qtest.own_qemu_blobs(CONFIG).digests


@needs_qemu
@pytest.mark.parametrize(
    "change",
    [
        {"cpu_count": 4},
        {"num_nics": 2},
        {"num_verity_volumes": 1},
        {"hotplug_off": True},
        {"memory_size": 2**36},
        {"memory_size": 2**36, "pci_hole64_size": 2**40},
    ],
    ids=str,
)
def test_the_tables_follow_the_shape(change: dict[str, Any]) -> None:
    """Another shape has other tables; also one with more memory than this computer has."""
    other = qtest.own_qemu_blobs(replace(CONFIG, **change)).digests["acpi-tables"]

    assert other != qtest.own_qemu_blobs(CONFIG).digests["acpi-tables"]


@needs_qemu
def test_a_device_is_in_the_tables_by_its_place_alone() -> None:
    """What stands in for a disk, a vsock or a shared folder leaves the tables as they are."""
    arguments = own_qemu_arguments(CONFIG)
    disk = ["-blockdev", "driver=null-co,node-name=d", "-device", "virtio-blk-pci,drive=d"]
    share = [
        "-fsdev",
        "local,path=/,id=f,security_model=none,readonly=on",
        "-device",
        "virtio-9p-pci,fsdev=f,mount_tag=t",
    ]
    real = [*disk, *arguments[2:8], *share, *arguments[10:]]

    assert qtest.paused_qemu_blobs(real) == qtest.own_qemu_blobs(CONFIG)


@needs_qemu
def test_a_qemu_that_refuses_its_arguments_is_unavailable() -> None:
    """What it said is in the error, and it is not waited for."""
    with pytest.raises(ToolUnavailableError, match=r"it ended, or was silent for 20 s: .*unsupported machine type"):
        qtest.paused_qemu_blobs(["-machine", "none-such"])


def test_a_qemu_that_is_not_there_is_unavailable() -> None:
    """Neither yes nor no."""
    with pytest.raises(ToolUnavailableError, match="/nonexistent: cannot be started"):
        qtest.own_qemu_digests(CONFIG, qemu="/nonexistent")
    with pytest.raises(ToolUnavailableError, match="/nonexistent: cannot be started"):
        qtest.own_qemu_blobs(CONFIG, qemu="/nonexistent")


def program(folder: Path, body: str) -> str:
    """Write a program in Python, and give its path."""
    path = folder / "program"
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_qemu_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """It is killed when its time is over."""
    with pytest.raises(ToolUnavailableError, match=r"it ended, or was silent for 0\.5 s"):
        qtest.paused_qemu_blobs([], qemu=program(tmp_path, "time.sleep(60)"), seconds=0.5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("for line in sys.stdin: print('OK 0xzz', flush=True)", "want hexadecimal, got 'zz'"),
        ("for line in sys.stdin: print('OK 0x00', flush=True)", "want 4 bytes at 0x1000, got 1"),
        ("for line in sys.stdin: print('OK 0x00000001', flush=True)", "fw_cfg did not hand out file 0x19"),
        ("while True: print('no')", "it ended, or was silent"),
    ],
)
def test_a_qemu_that_answers_something_else_is_unavailable(tmp_path: Path, body: str, message: str) -> None:
    """What does not speak the test protocol is no answer, and no crash."""
    with pytest.raises(ToolUnavailableError, match=message):
        qtest.paused_qemu_blobs([], qemu=program(tmp_path, body))


def test_a_qemu_that_prints_without_end_is_unavailable(tmp_path: Path) -> None:
    """Its version has a bound."""
    with pytest.raises(ToolUnavailableError, match="want at most 65536 bytes, got more"):
        qtest.qemu_version(program(tmp_path, "while True: print('QEMU')"))


_LEAVES_A_CHILD = "import subprocess; subprocess.Popen(['sleep', '600']); time.sleep(600)"


@pytest.mark.timeout(60)
def test_a_child_that_holds_the_output_open_ends_with_its_program(tmp_path: Path) -> None:
    """Of a program that started another, both are ended when the time is over, and nobody waits for the second."""
    name = program(tmp_path, _LEAVES_A_CHILD)

    with pytest.raises(ToolUnavailableError, match="failed with exit code -9"):
        acpi_sources.helper_digests(CONFIG, name, firmware="f", kernel="k", seconds=1)
    with pytest.raises(ToolUnavailableError, match="it ended, or was silent for 1 s"):
        qtest.paused_qemu_blobs([], qemu=name, seconds=1)


def test_a_helper_is_called_with_the_shape_and_without_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets arguments and the QEMU version to imitate, and nothing else of our environment."""
    (tmp_path / "tables").write_bytes(acpi_tables())
    body = f"""
import json
json.dump([sys.argv[1:], dict(os.environ)], open({str(tmp_path / "seen")!r}, "w"))
sys.stdout.buffer.write(open({str(tmp_path / "tables")!r}, "rb").read())"""
    config = replace(CONFIG, qemu_version="8.2.2")
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")

    digests = acpi_sources.helper_digests(config, program(tmp_path, body), firmware="/a;b", kernel="$(c)")

    argv, environment = json.loads((tmp_path / "seen").read_text())
    assert digests.by_name == derive_acpi_blobs(acpi_tables()).digests
    assert digests.source is AcpiSource.HELPER
    assert argv == helper_arguments(config, firmware="/a;b", kernel="$(c)")
    assert environment["QEMU_ACPI_COMPAT_VER"] == "8.2.2"
    assert "SECRET_OF_THE_CALLER" not in environment


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("sys.exit(3)", ToolUnavailableError, "failed with exit code 3"),
        (
            f"sys.stdout.write('x' * {MAX_TABLES_BLOB + 1})",
            ToolUnavailableError,
            f"want at most {MAX_TABLES_BLOB} bytes",
        ),
        ("time.sleep(60)", ToolUnavailableError, "failed with exit code -9"),
        ("print('no tables')", MeasurementMalformedError, "ACPI tables: "),
    ],
)
def test_a_helper_that_fails_is_no_answer(tmp_path: Path, body: str, error: type[Exception], message: str) -> None:
    """Its output and its time are bounded."""
    with pytest.raises(error, match=message):
        acpi_sources.helper_digests(CONFIG, program(tmp_path, body), firmware="f", kernel="k", seconds=2)


def test_captured_tables_are_found_by_their_shape(tmp_path: Path) -> None:
    """What was captured for one shape is found for it, and for no other; the digests are computed anew."""
    blobs = derive_acpi_blobs(acpi_tables())

    path = acpi_sources.capture(CONFIG, blobs, tmp_path / "store", note="seen by two people")

    found = acpi_sources.captured_digests(CONFIG, tmp_path / "store")
    assert found is not None
    assert (found.by_name, found.source) == (blobs.digests, AcpiSource.CAPTURED)
    assert found.detail == f"{path} (seen by two people)"
    for change in ({"cpu_count": 3}, {"memory_size": 2**32}, {"pic": True}, {"qemu_version": "8.2.2"}, {"num_gpus": 1}):
        assert acpi_sources.captured_digests(replace(CONFIG, **change), tmp_path / "store") is None


def test_a_store_has_one_answer_for_a_shape(tmp_path: Path) -> None:
    """A second capture is refused; an unset QEMU version is the default one."""
    blobs = derive_acpi_blobs(acpi_tables())
    acpi_sources.capture(CONFIG, blobs, tmp_path, note="")
    acpi_sources.capture(replace(CONFIG, cpu_count=9), blobs, tmp_path, note="")

    with pytest.raises(InputError, match="it has tables for this shape already"):
        acpi_sources.capture(replace(CONFIG, qemu_version="9.1.0"), blobs, tmp_path, note="")
    assert len(parse_store_index((tmp_path / "index.json").read_bytes())) == 2


def test_a_changed_blob_has_other_digests_or_is_refused(tmp_path: Path) -> None:
    """Nothing about the digests is written down that could go stale."""
    blobs = derive_acpi_blobs(acpi_tables())
    path = acpi_sources.capture(CONFIG, blobs, tmp_path, note="")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)

    found = acpi_sources.captured_digests(CONFIG, tmp_path)

    assert found is not None
    assert found.by_name["acpi-tables"] != blobs.digests["acpi-tables"]
    path.write_bytes(b"")
    with pytest.raises(MeasurementMalformedError, match="no table in it"):
        acpi_sources.captured_digests(CONFIG, tmp_path)


def entry(**change: Any) -> dict[str, Any]:
    """One entry of an index."""
    shape = {name: getattr(AcpiShape.of(CONFIG), name) for name in AcpiShape.__slots__}
    return {"shape": {**shape, **change.pop("shape", {})}, "tables": "a.bin", **change}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "want a list of at most"),
        ([entry(), entry()], "entry 1: its shape is listed twice"),
        ([entry(tables="../a")], "entry 0: want a plain file name, got '../a'"),
        ([entry(tables=".hidden")], "entry 0: want a plain file name"),
        ([entry(digest="00")], "entry 0: unknown member 'digest'"),
        ([entry(shape={"x": 1})], "shape: unknown member 'x'"),
        ([entry(shape={"pic": 1})], "pic: want true or false, got a number"),
        ([{"tables": "a"}], "shape: want a JSON object, got null"),
    ],
)
def test_another_index_is_refused(index: Any, message: str) -> None:
    """Paths, unknown members and double entries."""
    with pytest.raises(MeasurementMalformedError, match=message):
        parse_store_index(json.dumps(index).encode())


def test_an_index_has_a_bound() -> None:
    """A megabyte."""
    with pytest.raises(MeasurementMalformedError, match=f"want at most {MAX_INDEX} bytes"):
        parse_store_index(b" " * (MAX_INDEX + 1))
