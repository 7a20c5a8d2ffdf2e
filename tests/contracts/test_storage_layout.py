"""State stays where it is when the code behind a proxy changes: our own proxies, and upstream's."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from eth_utils.crypto import keccak

UPGRADEABLE = ["KmsAuth", "AppAuth"]
UPSTREAMS_NAME = {"KmsAuth": "DstackKms", "AppAuth": "DstackApp"}
# What a later version may not do to this, and what it may.
BEFORE = {
    "variables": ["0+0 info struct Info", "2+0 first bool", "2+1 second bool", "3+0 __gap uint256[7]"],
    "struct Info": ["0+0 key bytes", "1+0 quote bytes"],
    "namespaces": ["openzeppelin.storage.Ownable"],
}
APPENDED = BEFORE | {"variables": [*BEFORE["variables"][:-1], "3+0 third address", "4+0 __gap uint256[6]"]}
MOVED = {
    "swapped": {"variables": ["0+0 info struct Info", "2+0 second bool", "2+1 first bool", "3+0 __gap uint256[7]"]},
    "pushed": {"variables": ["0+0 new bool", *(f"{int(v[0]) + 1}{v[1:]}" for v in BEFORE["variables"])]},
    "retyped": {"variables": ["0+0 info struct Info", "2+0 first uint8", "2+1 second bool", "3+0 __gap uint256[7]"]},
    "removed": {"variables": ["0+0 info struct Info", "2+0 first bool", "3+0 __gap uint256[7]"]},
    "gap too long": {"variables": [*BEFORE["variables"][:-1], "3+0 third address", "4+0 __gap uint256[7]"]},
    "no gap": {"variables": BEFORE["variables"][:-1]},
    "member moved": {"struct Info": ["0+0 quote bytes", "1+0 key bytes"]},
    "base removed": {"namespaces": []},
}


@pytest.fixture(scope="module")
def storage_layout(project_root: Path) -> Iterator[ModuleType]:
    """scripts/storage_layout.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project_root / "scripts")
        yield importlib.import_module("storage_layout")


@pytest.fixture(scope="module")
def layouts(storage_layout: ModuleType) -> dict[str, Any]:
    """What the sources compile to."""
    return {name: storage_layout.layout(name) for name in UPGRADEABLE}


def test_the_layout_is_the_committed_one(layouts: dict[str, Any], project_root: Path) -> None:
    """Every variable, member of a struct and namespace of both contracts is where the snapshot has it."""
    assert layouts == json.loads((project_root / "tests/contracts/storage_layout.json").read_text())


@pytest.mark.parametrize("name", UPGRADEABLE)
def test_upstreams_variables_lie_where_upstream_has_them(
    storage_layout: ModuleType, layouts: dict[str, Any], upstream: Any, name: str
) -> None:
    """Upstream's proxies can be upgraded to this code: theirs is in place, and ours is behind it, in their gap."""
    theirs = [(place if "+" in place else f"{place}+0", label.split()[0]) for place, label in layout_of(upstream, name)]
    *kept, (gap, length) = theirs
    end = int(gap.removesuffix("+0")) + int(length.removeprefix("gap[").removesuffix("]"))

    ours = [tuple(line.split()[:2]) for line in layouts[name]["variables"]]

    assert ours[: len(kept)] == kept
    assert ours[-1][1] == "__gap"
    assert storage_layout.gap(layouts[name]["variables"])[1] == end


def layout_of(upstream: Any, name: str) -> list[tuple[str, str]]:
    """Upstream's layout of the contract that *name* stands in for."""
    return [(place, label) for place, label in upstream["storage_layout"][UPSTREAMS_NAME[name]]]


@pytest.mark.parametrize("name", UPGRADEABLE)
def test_the_bases_keep_their_state_where_upstream_has_it(layouts: dict[str, Any], upstream: Any, name: str) -> None:
    """OpenZeppelin's parts are those of upstream, and each namespace leads to upstream's slot (ERC-7201)."""

    def slot(namespace: str) -> str:
        inner = int.from_bytes(keccak(text=namespace), "big") - 1
        return f"0x{int.from_bytes(keccak(inner.to_bytes(32, 'big')), 'big') & ~0xFF:064x}"

    assert {each: slot(each) for each in layouts[name]["namespaces"]} == upstream["erc7201_slots"]


def test_taking_from_the_gap_moves_nothing(storage_layout: ModuleType) -> None:
    """A new variable at the beginning of the gap, which shrinks by as much, is accepted."""
    assert storage_layout.moves(BEFORE, APPENDED) == []


@pytest.mark.parametrize("name", MOVED)
def test_a_move_is_seen(storage_layout: ModuleType, name: str) -> None:
    """Whatever else changes the place or the type of something is named."""
    assert storage_layout.moves(BEFORE, BEFORE | MOVED[name]) != []


def test_a_variable_put_first_is_seen_in_the_build(
    storage_layout: ModuleType, layouts: dict[str, Any], project_root: Path, tmp_path: Path
) -> None:
    """A contract with one more variable before all others compiles, and everything in it has moved."""
    (tmp_path / "node_modules").symlink_to(project_root / "node_modules")
    for source in (project_root / "contracts").rglob("*.sol"):
        if ".cache" not in source.parts:
            copy = tmp_path / source.relative_to(project_root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(re.sub(r"(\ncontract KmsAuth [^{]*{)", r"\1 bool first;", source.read_text()))

    moved = storage_layout.moves(layouts["KmsAuth"], storage_layout.layout("KmsAuth", tmp_path))

    variables = [line for line in layouts["KmsAuth"]["variables"] if "__gap" not in line]
    assert [line for line in moved if line in variables] == variables
    assert any(line.startswith("the gap ends before") for line in moved)
