"""ape's build of the contracts is the committed one, but for the digests of the sources' names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from dstack.chain.artifacts import load_artifact


@pytest.mark.parametrize("name", ["KmsAuth", "AppAuth", "UpgradeOperator"])
def test_ape_compiles_to_the_committed_code(project: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Both codes, the one that deploys and the one that is deployed, are executed alike."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent.parent / "scripts")
    without_metadata = importlib.import_module("compile_contracts").without_metadata
    built = project.get_contract(name).contract_type

    theirs = [without_metadata(code.bytecode.removeprefix("0x")) for code in codes_of(built)]

    ours = load_artifact(name)
    assert theirs == [without_metadata(code.hex()) for code in (ours.bytecode, ours.deployed_bytecode)]


def codes_of(built: Any) -> list[Any]:
    """Creation code and code on chain, as ape keeps them."""
    return [built.deployment_bytecode, built.runtime_bytecode]
