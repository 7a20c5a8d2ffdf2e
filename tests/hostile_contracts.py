"""Contracts of others: those that mean harm, compiled from `tests/hostile` by our solc; OpenZeppelin's built ones."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from web3 import Web3
from web3.contract import Contract

from scripts.compile_contracts import SETTINGS, SOLC
from tests.governed_world import GovernedWorld

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "tests/hostile/Hostile.sol"
BUILT = Path("node_modules/@openzeppelin/contracts/build/contracts")


@dataclass(frozen=True, slots=True)
class Compiled:
    """One contract."""

    abi: list[dict[str, Any]]
    bytecode: str

    def deploy(self, world: GovernedWorld, *arguments: Any) -> Contract:
        """Put it on the chain."""
        creation = world.w3.eth.contract(abi=self.abi, bytecode=self.bytecode).constructor(*arguments)
        address = world.deploy(Web3.to_bytes(hexstr=creation.data_in_transaction))
        return world.w3.eth.contract(address=address, abi=self.abi)


@cache
def hostile(name: str) -> Compiled:
    """The contract of this name."""
    return _compiled()[name]


def built(name: str) -> Compiled:
    """A contract that OpenZeppelin publishes compiled."""
    content = json.loads((ROOT / BUILT / f"{name}.json").read_text())
    return Compiled(content["abi"], content["bytecode"])


@cache
def _compiled() -> dict[str, Compiled]:
    settings = SETTINGS | {"outputSelection": {"*": {"*": ["abi", "evm.bytecode.object"]}}}
    request = {"language": "Solidity", "sources": {SOURCE: {"urls": [SOURCE]}}, "settings": settings}
    command = [str(SOLC), "--standard-json", "--base-path", str(ROOT), "--allow-paths", str(ROOT)]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    output = json.loads(done.stdout)
    assert output.get("errors", []) == [], [entry["formattedMessage"] for entry in output["errors"]]
    return {
        name: Compiled(entry["abi"], "0x" + entry["evm"]["bytecode"]["object"])
        for name, entry in output["contracts"][SOURCE].items()
    }
