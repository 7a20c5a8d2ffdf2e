"""The committed build."""

from __future__ import annotations

import pytest

from dstack.chain.artifacts import ARTIFACT_NAMES, load_artifact
from dstack.errors import InputError


@pytest.mark.parametrize("name", ARTIFACT_NAMES)
def test_every_artifact_can_be_deployed(name: str) -> None:
    """Creation code holds the code on chain up to immutable values, within the limit of 24,576 bytes (EIP-170)."""
    artifact = load_artifact(name)

    assert artifact.name == name
    assert artifact.deployed_bytecode in artifact.bytecode
    assert len(artifact.deployed_bytecode) <= 24_576


def test_an_unknown_artifact_is_refused() -> None:
    """The error lists what there is."""
    with pytest.raises(InputError, match="want one of KmsAuth, AppAuth, UpgradeOperator, ERC1967Proxy, got 'secret'"):
        load_artifact("secret")


def test_code_is_compared_outside_immutable_places() -> None:
    """Immutable values may be anything; any other byte, or another length, is other code."""
    artifact = load_artifact("KmsAuth")
    start, length = artifact.immutable_places[0]
    code = bytearray(artifact.deployed_bytecode)
    code[start : start + length] = b"\x5a" * length

    assert artifact.is_code(bytes(code))
    assert not artifact.is_code(bytes(code) + b"\0")
    assert not artifact.is_code(b"")
    code[start - 1] ^= 1
    assert not artifact.is_code(bytes(code))
