"""The build of the contracts: what is committed is what the sources compile to."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest


def script(project_root: Path, name: str) -> ModuleType:
    """A script, loaded from its file."""
    spec = importlib.util.spec_from_file_location(name, project_root / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compile_contracts(project_root: Path) -> ModuleType:
    """scripts/compile_contracts.py."""
    return script(project_root, "compile_contracts")


@pytest.fixture
def install_solc(project_root: Path) -> ModuleType:
    """scripts/install_solc.py."""
    return script(project_root, "install_solc")


def test_the_committed_artifacts_are_the_build(compile_contracts: ModuleType) -> None:
    """Compiling gives the committed files, byte for byte, without a warning."""
    compile_contracts.compare(compile_contracts.build())


def test_every_difference_is_named(
    compile_contracts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed, a missing and a superfluous artifact are all named; writing makes them right."""
    monkeypatch.setattr(compile_contracts, "ARTIFACTS", tmp_path)
    built = {"A.json": "a", "B.json": "b", "C.json": "c"}
    (tmp_path / "A.json").write_text("a")
    (tmp_path / "B.json").write_text("other")
    (tmp_path / "D.json").write_text("d")

    with pytest.raises(
        compile_contracts.BuildError, match=r"do not compile to the committed B\.json, C\.json, D\.json"
    ):
        compile_contracts.compare(built)
    compile_contracts.write(built)
    compile_contracts.compare(built)


def test_a_missing_compiler_is_named(
    compile_contracts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without solc the error says which one and how to get it."""
    monkeypatch.setattr(compile_contracts, "SOLC", tmp_path / "solc")

    with pytest.raises(compile_contracts.BuildError, match=r"want solc 0\.8\.30 in \.solcx, got none"):
        compile_contracts.build()


def test_the_compilers_complaints_stop_the_build(
    compile_contracts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error or warning of solc is passed on."""
    solc = tmp_path / "solc"
    solc.write_text('#!/bin/sh\ncat >/dev/null\necho \'{"errors":[{"formattedMessage":"Warning: unused"}]}\'\n')
    solc.chmod(0o755)
    monkeypatch.setattr(compile_contracts, "SOLC", solc)

    with pytest.raises(compile_contracts.BuildError, match="solc has something to say:\nWarning: unused"):
        compile_contracts.build()


@pytest.fixture
def wrapper(install_solc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wrapper over the npm build, in a folder whose name holds a blank."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.setattr(install_solc, "SOLC", folder / "solc-v0.8.30")
    install_solc.wrap_npm_build()
    return folder / "solc-v0.8.30"


def test_the_wrapper_compiles_what_it_can_reach(wrapper: Path, tmp_path: Path) -> None:
    """Imports are found under the base path and, failing that, the include path; both spellings of options work."""
    for name, text in (("base/A.sol", 'import "B.sol"; contract A is B {}'), ("more/B.sol", "contract B {}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    request = {"language": "Solidity", "sources": {"A.sol": {"urls": ["A.sol"]}}, "settings": {}}
    options = ["--standard-json", "--base-path", "base", "--include-path=more", "--allow-paths", ".", "-"]

    said = subprocess.run(
        [wrapper, *options], input=json.dumps(request), cwd=tmp_path, capture_output=True, text=True, check=True
    )

    messages = [entry for entry in json.loads(said.stdout).get("errors", ()) if entry["severity"] == "error"]
    assert (messages, sorted(json.loads(said.stdout)["sources"])) == ([], ["A.sol", "B.sol"])


def test_the_wrapper_refuses_what_it_cannot_do(wrapper: Path) -> None:
    """Another way of calling solc ends with an error instead of nothing."""
    said = subprocess.run([wrapper, "--bin"], capture_output=True, text=True, check=False)

    assert (said.returncode, said.stderr) == (1, "want --version or --standard-json, got --bin\n")


def test_a_missing_npm_package_is_named(
    install_solc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without native solc and without the npm build the error says what to run."""
    monkeypatch.setattr(install_solc, "PACKAGE", tmp_path)

    with pytest.raises(install_solc.InstallError, match="got none in node_modules; run npm ci"):
        install_solc.wrap_npm_build()


def test_a_missing_node_is_named(install_solc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on PATH nor in the package: the error says which version is wanted."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(install_solc.sys, "executable", str(tmp_path / "python"))

    with pytest.raises(install_solc.InstallError, match="want Node 20 or later"):
        install_solc.find_node()
