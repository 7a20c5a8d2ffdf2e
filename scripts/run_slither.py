"""Runs slither on the contracts; every finding must be argued in docs/slither.md, and every argument needed.

A row of the table there is a detector, the places it speaks of, and why that is no fault. Line numbers play no part:
a place is `Contract.member`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SLITHER = ROOT / ".audit" / "bin" / "slither"
ARGUMENTS = ROOT / "docs" / "slither.md"
OPTIONS = ["--foundry-out-directory", ".build/forge/out", "--filter-paths", "node_modules|tests/", "--fail-none"]
TIME_LIMIT_SECONDS = 600

Finding = tuple[str, str]


class AuditError(Exception):
    """slither did not run; the message is for a person."""


def main() -> int:
    """Print what is found and not argued, or argued and not found; 0 when there is neither."""
    if not SLITHER.exists():
        sys.stderr.write("slither: want it in .audit, got none; run make slither\n")
        return 2
    try:
        found = find()
    except AuditError as exc:
        sys.stderr.write(f"slither: {exc}\n")
        return 2
    argued = argued_in(ARGUMENTS.read_text())
    for finding in sorted(found.keys() - argued):
        print(f"not argued in docs/slither.md: {' in '.join(finding)}\n{found[finding]}")
    for finding in sorted(argued - found.keys()):
        print(f"argued in docs/slither.md, not found: {' in '.join(finding)}")
    print(f"slither: {len(found)} findings, {len(found.keys() & argued)} of them argued")
    return int(found.keys() != argued)


def find() -> dict[Finding, str]:
    """What slither finds in our sources, with its description.

    Raises:
        AuditError: It gave no result.
    """
    command: list[str | Path] = [SLITHER, ".", *OPTIONS, "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIME_LIMIT_SECONDS)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise AuditError(f"it gave no result:\n{done.stderr[-3000:]}") from None
    if not report["success"]:
        raise AuditError(f"it failed:\n{report['error']}")
    detected = report["results"].get("detectors", ())
    return {(entry["check"], place(entry["elements"][0])): entry["description"] for entry in detected}


def place(element: dict[str, Any]) -> str:
    """`Contract.member` around a finding's first element."""
    while element["type"] not in ("contract", "function", "variable", "event", "struct", "enum"):
        element = element["type_specific_fields"]["parent"]
    names = [str(element["name"])]
    while element := element.get("type_specific_fields", {}).get("parent", {}):
        names.insert(0, str(element["name"]))
    return ".".join(names)


def argued_in(markdown: str) -> set[Finding]:
    """The findings that the table argues: detector in the first column, places in the second."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+?) \| .+ \|$", markdown, re.MULTILINE)
    return {(detector, name) for detector, places in rows for name in re.findall(r"`([^`]+)`", places)}


if __name__ == "__main__":
    sys.exit(main())
