"""Golden data of images and captures: files are run by what they hold, and what is missing is not counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def folder(project_root: Path, tmp_path: Path) -> Path:
    """Give an image, its parts, and a real machine's capture, under names of their own."""
    golden, target = project_root / "tests" / "vectors" / "measurement", tmp_path / "golden" / "measurement"
    target.mkdir(parents=True)
    for name in ("tdvf-a.bin", "kernel-a.bin"):
        shutil.copy(golden / name, target)
    shutil.copy(golden / "synthetic_image.json", target / "image-of-today.json")
    shutil.copy(golden / "real_64gib_gpu.json", target / "real-of-today.json")
    return target


@pytest.fixture
def run(project_root: Path, folder: Path, tmp_path: Path) -> Run:
    """Run the program; gives its exit code, and what it said of each kind."""

    def run() -> tuple[int, dict[str, Any]]:
        command = [sys.executable, project_root / "scripts" / "run_vectors.py", folder.parent, "--json"]
        environment = {**os.environ, "PACKAGE_ROOTS": str(tmp_path / "packages")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        report = json.loads(done.stdout)
        kinds = {each["kind"].removeprefix("measurement/"): each for each in report["kinds"]}
        return done.returncode, {**kinds, "unsupported": report["unsupported"]}

    return run


def spoil(path: Path, change: Callable[[Any], object]) -> None:
    """Change a file of golden data."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_what_a_file_holds_decides_how_it_is_run(run: Run, folder: Path) -> None:
    """Names do not matter, and a file of another kind is named and not counted."""
    (folder / "something-else.json").write_text('{"what": "ever"}')

    code, kinds = run()

    counts = {name: (each["cases"], each["failed"]) for name, each in kinds.items() if name != "unsupported"}
    assert (code, counts) == (0, {"image-of-today": (2, 0), "real-of-today": (1, 0)})
    assert kinds["unsupported"] == ["measurement/something-else"]


def test_wrong_values_and_wrong_inputs_are_failures(run: Run, folder: Path) -> None:
    """A register, a digest for one size of memory, a byte of the firmware, an event of the capture."""
    spoil(
        folder / "image-of-today.json", lambda tree: tree["kernel"][0]["by_memory"]["1073741824"].update(initrd_addr=1)
    )
    firmware = bytearray((folder / "tdvf-a.bin").read_bytes())
    firmware[8192] ^= 1
    (folder / "tdvf-a.bin").write_bytes(firmware)
    spoil(
        folder / "real-of-today.json", lambda tree: tree.update(event_log=tree["event_log"].replace("app-id", "app-ix"))
    )

    code, kinds = run()

    assert code == 1
    assert {each["member"] for each in kinds["image-of-today"]["failures"]} == {
        *("by_memory", "mrtd_single_pass", "mrtd_two_pass", "sha256")
    }
    assert [each["got"] for each in kinds["real-of-today"]["failures"]] == [
        "AppraisalError: capture: the log does not fold into rtmr3"
    ]


def test_a_capture_of_another_memory_is_a_failure(run: Run, folder: Path) -> None:
    """RTMR0 is recomputed from the VM config, not only folded."""
    spoil(
        folder / "real-of-today.json",
        lambda tree: tree.update(vm_config=tree["vm_config"].replace("68719476736", "34359738368")),
    )

    code, kinds = run()

    assert code == 1
    assert "rtmr0 is not the one that follows" in kinds["real-of-today"]["failures"][0]["got"]


def test_packages_that_are_not_here_are_not_counted(run: Run, folder: Path, tmp_path: Path) -> None:
    """One that is unpacked is run; a firmware that must be refused and is not fails."""
    raw = (folder / "tdvf-a.bin").read_bytes()
    source = {"package": "p", "version": "1", "member": "usr/fw.fd"}
    entry = {"source": source, "sha256": sha256(raw).hexdigest(), "size": len(raw)}
    golden = {"firmware": [entry, {**entry, "sha256": "00" * 32}], "negative": [{**entry, "expect": "refused"}]}
    (folder / "packaged.json").write_text(json.dumps(golden))

    _, absent = run()
    (tmp_path / "packages" / "usr").mkdir(parents=True)
    (tmp_path / "packages" / "usr" / "fw.fd").write_bytes(raw)
    code, present = run()

    assert (absent["packaged"]["cases"], absent["packaged"]["unsupported"]) == (0, 3)
    assert (code, present["packaged"]["passed"], present["packaged"]["unsupported"]) == (1, 1, 1)
    assert [each["case"] for each in present["packaged"]["failures"]] == ["negative[0]"]


def test_what_a_file_lacks_is_no_failure(run: Run, folder: Path) -> None:
    """Optional sections and members may be absent."""
    spoil(folder / "image-of-today.json", lambda tree: [tree.pop("kernel"), tree["tdvf"][0].pop("td_hob_sha384")])
    spoil(folder / "real-of-today.json", lambda tree: [tree.pop("vm_config"), tree.pop("report_data", None)])

    code, kinds = run()

    assert (code, kinds["image-of-today"]["passed"], kinds["real-of-today"]["passed"]) == (0, 1, 1)
