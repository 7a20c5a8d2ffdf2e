"""The committed build of the contracts: `artifacts/*.json`, written by `scripts/compile_contracts.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from dstack.errors import InputError
from dstack.values import bytes_from_hex


@dataclass(frozen=True, slots=True)
class Artifact:
    """One compiled contract.

    Attributes:
        abi: As solc gives it.
        bytecode: Creation code, without constructor arguments.
        deployed_bytecode: Code on chain, zero where immutable values are filled in.
        immutable_places: (start, length) of those places.
    """

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    deployed_bytecode: bytes
    immutable_places: tuple[tuple[int, int], ...]

    def is_code(self, code: bytes) -> bool:
        """Whether *code*, as found on chain, is this contract; immutable values are not looked at."""
        masked = bytearray(code)
        for start, length in self.immutable_places:
            masked[start : start + length] = bytes(length)
        return bytes(masked) == self.deployed_bytecode


ARTIFACT_NAMES = ("KmsAuth", "AppAuth", "UpgradeOperator", "ERC1967Proxy")


@cache
def load_artifact(name: str) -> Artifact:
    """The artifact of one of `ARTIFACT_NAMES`.

    Raises:
        InputError: There is no such contract.
    """
    if name not in ARTIFACT_NAMES:
        raise InputError(f"artifact: want one of {', '.join(ARTIFACT_NAMES)}, got {name!r}")
    content = json.loads((files("dstack.chain") / "artifacts" / f"{name}.json").read_text())
    return Artifact(
        name=name,
        abi=content["abi"],
        bytecode=bytes_from_hex(content["bytecode"], what=name),
        deployed_bytecode=bytes_from_hex(content["deployedBytecode"], what=name),
        immutable_places=tuple((place["start"], place["length"]) for place in content["immutableReferences"]),
    )
