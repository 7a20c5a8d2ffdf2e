"""Proves properties of the contracts with halmos, and proves that the proofs would notice.

Each `check_` function of `tests/forge/Proofs.t.sol` is tried for every value of its arguments. A property that holds
says nothing unless it can fail: for each there is at least one negative control, a copy of the contracts with one
small change, in which halmos must find the property broken.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HALMOS = ROOT / ".symbolic" / "bin" / "halmos"
COPIED = ("contracts", "tests/forge", "foundry.toml")
LINKED = ("node_modules", ".solcx")
# A call of any function has lists of one element and bytes of one or two words: what one action of any kind but
# a version needs.
LENGTHS = ("--default-array-lengths", "1", "--default-bytes-lengths", "32,64")
TIME_LIMIT_SECONDS = 1800
PROVED, REFUTED = 0, 1
VERDICTS = {PROVED: "proved", REFUTED: "refuted", 2: "timeout", 3: "stuck", 4: "always reverts", 5: "failed to run"}


class ProofError(Exception):
    """halmos did not run, or a control does not fit the sources; the message is for a person."""


@dataclass(frozen=True)
class Control:
    """A change of the contracts that breaks *prove*."""

    prove: str
    change: str
    file: str
    old: str
    new: str


OPERATOR = "contracts/UpgradeOperator.sol"

CONTROLS = (
    Control(
        "check_P1_floor",
        "the shortest delay is 47 hours",
        OPERATOR,
        "MIN_DELAY = 48 hours;",
        "MIN_DELAY = 47 hours;",
    ),
    Control(
        "check_P1_floor",
        "a proposal is Ready a second early",
        OPERATOR,
        "if (block.timestamp < record.readyAt)",
        "if (block.timestamp + 1 < record.readyAt)",
    ),
    Control(
        "check_P1_floorOfDelays",
        "every action waits as long as policy",
        OPERATOR,
        "uint256 delay = _delay(action.classOf());",
        "uint256 delay = delays.policy;",
    ),
    Control(
        "check_P9_guardian",
        "the guardian may disable upgrades",
        OPERATOR,
        "require(msg.sender == owner(), NotForGuardian(Kind.ContractUpgrades));",
        "",
    ),
    Control(
        "check_P9_guardian",
        "denying any device allows it",
        OPERATOR,
        "setAllowAnyDevice(false)",
        "setAllowAnyDevice(true)",
    ),
    Control(
        "check_P9_stranger",
        "anybody may cancel",
        OPERATOR,
        "function cancel(bytes32 id) external onlyOwnerOrGuardian {",
        "function cancel(bytes32 id) external {",
    ),
    Control(
        "check_P11_once",
        "an execution leaves no trace",
        OPERATOR,
        "_proposals[id].executedAt = uint48(block.timestamp);",
        "",
    ),
    Control(
        "check_P1_forcedGuardian",
        "forcing out the guardian waits no longer than anything else",
        OPERATOR,
        "FORCED_DELAY = 7 days;",
        "FORCED_DELAY = 48 hours;",
    ),
    Control(
        "check_P9_forcedGuardian",
        "the guardian may cancel what replaces it",
        OPERATOR,
        "require(!record.forced || msg.sender == owner(), NotForGuardian(Kind.ForcedGuardian));",
        "",
    ),
)


def main() -> int:
    """Print a verdict for each property and control; 0 when all are as they must be."""
    if not HALMOS.exists():
        sys.stderr.write("prove: want halmos in .symbolic, got none; run make symbolic\n")
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            good = show_proofs(Path(folder))
        for control in CONTROLS:
            with tempfile.TemporaryDirectory() as folder:
                good &= show_control(control, Path(folder))
    except ProofError as exc:
        sys.stderr.write(f"prove: {exc}\n")
        return 2
    return 0 if good else 1


def show_proofs(folder: Path) -> bool:
    """Run every property on the contracts as they are; whether all hold and each has a control."""
    copy_project(folder)
    results = run_halmos(folder, "check_")
    controlled = {control.prove for control in CONTROLS}
    for name, (verdict, seconds) in results.items():
        note = "" if name in controlled else "; has no negative control"
        show(verdict == PROVED and name in controlled, name, f"{VERDICTS[verdict]}{note}", seconds)
    return all(verdict == PROVED for verdict, _ in results.values()) and results.keys() == controlled


def show_control(control: Control, folder: Path) -> bool:
    """Run one property on contracts with one change; whether it is found broken."""
    copy_project(folder)
    path = folder / control.file
    source = path.read_text()
    if source.count(control.old) != 1:
        raise ProofError(f"want once in {control.file}, got {source.count(control.old)} times: {control.old}")
    path.write_text(source.replace(control.old, control.new))
    verdict, seconds = run_halmos(folder, control.prove)[control.prove]
    show(verdict == REFUTED, control.prove, f"{VERDICTS[verdict]} where {control.change}", seconds)
    return verdict == REFUTED


def show(good: bool, name: str, said: str, seconds: float) -> None:
    """One line of the report."""
    print(f"{'ok  ' if good else 'FAIL'} {name:44} {seconds:5.0f} s  {said}", flush=True)


def copy_project(folder: Path) -> None:
    """Put what forge needs into *folder*."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".cache"))
        else:
            shutil.copy(source, target)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def run_halmos(folder: Path, prefix: str) -> dict[str, tuple[int, float]]:
    """Try the properties whose name begins with *prefix*; verdict and seconds by name.

    Raises:
        ProofError: halmos gave no result.
    """
    report = folder / "report.json"
    command: list[str | Path] = [HALMOS, "--root", folder, "--forge-build-out", ".build/forge/out"]
    command += ["--contract", "Proofs", "--function", prefix, "--json-output", report, "--no-status", *LENGTHS]
    # The solver that the lock pins lies beside halmos; without it there halmos would look for one to download.
    environment = {**os.environ, "PATH": f"{HALMOS.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_SECONDS
    )
    if not report.exists():
        raise ProofError(f"halmos gave no result:\n{(done.stdout + done.stderr)[-3000:]}")
    results: list[dict[str, Any]] = [
        result for found in json.loads(report.read_text())["test_results"].values() for result in found
    ]
    return {
        str(result["name"]).split("(")[0]: (int(result["exitcode"]), float(result["time"][0]) if result["time"] else 0)
        for result in results
    }


if __name__ == "__main__":
    sys.exit(main())
