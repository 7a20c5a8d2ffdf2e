"""The bytecode is what the sources say, whoever compiles them, and with what."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

OURS = ("KmsAuth", "AppAuth", "UpgradeOperator")
FORGE = Path("node_modules/@foundry-rs/forge-linux-amd64/bin/forge")
FORGE_SECONDS = 200


@pytest.fixture(scope="module")
def scripts(project_root: Path) -> Iterator[None]:
    """The modules in scripts/ can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project_root / "scripts")
        yield


@pytest.fixture(scope="module")
def compile_contracts(scripts: None) -> ModuleType:
    """scripts/compile_contracts.py, the canonical build."""
    return importlib.import_module("compile_contracts")


@pytest.fixture(scope="module")
def committed(project_root: Path) -> dict[str, str]:
    """The committed artifacts by file name."""
    return {path.name: path.read_text() for path in (project_root / "dstack/chain/artifacts").glob("*.json")}


def copied_sources(project_root: Path, folder: Path) -> Path:
    """A folder elsewhere with our sources, and the libraries by a link."""
    shutil.copytree(project_root / "contracts", folder / "contracts", ignore=shutil.ignore_patterns(".cache"))
    (folder / "node_modules").symlink_to(project_root / "node_modules")
    return folder


def test_another_folder_compiles_to_the_same_bytes(
    compile_contracts: ModuleType, committed: dict[str, str], project_root: Path, tmp_path: Path
) -> None:
    """A copy of the sources elsewhere gives the committed artifacts, digests of the sources included."""
    assert compile_contracts.build(copied_sources(project_root, tmp_path)) == committed


def test_forge_compiles_to_the_same_code(
    compile_contracts: ModuleType, committed: dict[str, str], project_root: Path, tmp_path: Path
) -> None:
    """forge, which reads foundry.toml and asks solc in its own way, gives the same code but for the digests."""
    if not (project_root / FORGE).exists():
        pytest.skip("no forge for this machine in node_modules")
    sources = [f"contracts/{name}.sol" for name in OURS]
    folders = ["--out", str(tmp_path / "out"), "--cache-path", str(tmp_path / "cache")]
    command = [str(project_root / FORGE), "build", "--force", *folders, *sources]

    subprocess.run(command, cwd=project_root, capture_output=True, check=True, timeout=FORGE_SECONDS)

    built = {name: json.loads((tmp_path / "out" / f"{name}.sol" / f"{name}.json").read_text()) for name in OURS}
    for name in OURS:
        canonical = json.loads(committed[f"{name}.json"])
        for kind in ("bytecode", "deployedBytecode"):
            theirs = compile_contracts.without_metadata(built[name][kind]["object"])
            assert theirs == compile_contracts.without_metadata(canonical[kind])


def test_native_and_webassembly_solc_compile_to_the_same_bytes(
    compile_contracts: ModuleType, committed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both builds of the compiler give the committed artifacts; skipped where only one of them is installed."""
    if compile_contracts.SOLC.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("native solc is not installed here; the WebAssembly build made the committed artifacts")
    install_solc = importlib.import_module("install_solc")
    monkeypatch.setattr(install_solc, "SOLC", tmp_path / "solc-v0.8.30")
    install_solc.wrap_npm_build()

    native = compile_contracts.build()
    monkeypatch.setattr(compile_contracts, "SOLC", tmp_path / "solc-v0.8.30")
    webassembly = compile_contracts.build()

    assert native == webassembly == committed


def test_only_digests_are_left_out_of_a_comparison(compile_contracts: ModuleType, committed: dict[str, str]) -> None:
    """One digest goes from each contract, two from the one that carries a second contract's code; 53 bytes each."""
    counts = {}
    for name in (*OURS, "ERC1967Proxy"):
        code = json.loads(committed[f"{name}.json"])["bytecode"]
        counts[name] = (len(code) - len(compile_contracts.without_metadata(code))) / 2 / 53

    assert counts == {"KmsAuth": 2, "AppAuth": 1, "UpgradeOperator": 1, "ERC1967Proxy": 1}
