"""Where the contracts that can be upgraded keep their state, as lines that a person can read.

Rewrites the snapshot that a test compares, unless something that it holds would have moved: a proxy that runs the old
code would then find other values under the new one. While nothing is deployed, delete the snapshot first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compile_contracts

SNAPSHOT = compile_contracts.ROOT / "tests" / "contracts" / "storage_layout.json"
UPGRADEABLE = ("KmsAuth", "AppAuth")
GAP = "__gap"
Layout = dict[str, list[str]]


def main() -> int:
    """Rewrite the snapshot; 1 when it would hide a move."""
    now = {name: layout(name) for name in UPGRADEABLE}
    before = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}
    moved = [f"{name}: {line}" for name in before for line in moves(before[name], now[name])]
    if moved:
        sys.stderr.write("storage: not rewritten, because it moved:\n" + "\n".join(moved) + "\n")
        return 1
    SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    return 0


def layout(name: str, root: Path = compile_contracts.ROOT) -> Layout:
    """The layout of one contract under *root*.

    Returns:
        `variables`: slot, offset, name and type of each. For each struct that they hold, its members likewise,
        counted from its beginning. `namespaces`: where OpenZeppelin's parts keep their state (ERC-7201).
    """
    output = compile_contracts.run_solc(root, ["storageLayout", "ast"])
    contract = output["contracts"][compile_contracts.SOURCES[name]][name]["storageLayout"]
    types = contract["types"] or {}
    structs = {kind["label"]: list(_lines(kind["members"], types)) for kind in types.values() if "members" in kind}
    variables = list(_lines(contract["storage"], types))
    return {"variables": variables, **dict(sorted(structs.items())), "namespaces": _namespaces(name, root, output)}


def moves(before: Layout, now: Layout) -> list[str]:
    """What lies elsewhere, or is something else, than *before*; a gap may shrink by what was taken from its start."""
    moved = []
    for part, lines in before.items():
        kept = set(now.get(part, ()))
        moved += [line for line in lines if line not in kept and f" {GAP} " not in line]
    for name, lines in (("before", before["variables"]), ("now", now["variables"])):
        if not gap(lines):
            moved.append(f"no gap {name}")
    if gap(before["variables"])[-1:] != gap(now["variables"])[-1:]:
        moved.append(f"the gap ends before {gap(now['variables'])[-1:]}, not {gap(before['variables'])[-1:]}")
    return moved


def gap(lines: list[str]) -> list[int]:
    """First slot of the gap, and first slot behind it; nothing when there is no gap."""
    found = re.findall(rf"^(\d+)\+0 {GAP} uint256\[(\d+)\]$", "\n".join(lines), re.MULTILINE)
    return [int(found[0][0]), int(found[0][0]) + int(found[0][1])] if found else []


def _lines(entries: list[dict[str, Any]], types: dict[str, Any]) -> Iterator[str]:
    for entry in entries:
        yield f"{entry['slot']}+{entry['offset']} {entry['label']} {types[entry['type']]['label']}"


def _namespaces(name: str, root: Path, output: dict[str, Any]) -> list[str]:
    contracts = {
        node["id"]: (path, node)
        for path, source in output["sources"].items()
        for node in source["ast"]["nodes"]
        if node["nodeType"] == "ContractDefinition"
    }
    (ours,) = (node for path, node in contracts.values() if (path, node["name"]) == (_path(name), name))
    bases = {contracts[base][0] for base in ours["linearizedBaseContracts"]}
    texts = [(root / path).read_text() for path in bases]
    return sorted({found for text in texts for found in re.findall(r"@custom:storage-location erc7201:(\S+)", text)})


def _path(name: str) -> str:
    return compile_contracts.SOURCES[name]


if __name__ == "__main__":
    sys.exit(main())
