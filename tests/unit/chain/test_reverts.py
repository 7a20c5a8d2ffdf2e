"""A contract's refusal as a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from dstack.chain.artifacts import ARTIFACT_NAMES, load_artifact
from dstack.chain.operator import Kind, State
from dstack.chain.reverts import ENUMS, SENTENCES, explain_revert

ADDRESS = "0x" + "11" * 20
# A text that says it is longer than any memory.
ENDLESS = encode(["uint256"] * 2, [32, 1 << 255])


def selector(signature: str) -> bytes:
    """First four bytes of a signature's digest."""
    return keccak(text=signature)[:4]


UNEXPECTED_STATE = selector("UnexpectedState(bytes32,uint8,uint8)")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the contract refused without a reason"),
        (selector("Error(string)") + encode(["string"], ["Invalid\napp ID"]), "Invalid?app ID"),
        (selector("Panic(uint256)") + encode(["uint256"], [0x11]), "the contract failed with panic 0x11"),
        (b"\x12\x34\x56\x78" + bytes(100), "the contract refused with unknown error 0x12345678" + "00" * 32),
        (b"\x12", "the contract refused with unknown error 0x12"),
        (selector("Error(string)") + b"\x01", "the contract refused with malformed error 0x08c379a001"),
        (
            selector("Error(string)") + ENDLESS,
            f"the contract refused with malformed error 0x08c379a0{ENDLESS[:32].hex()}",
        ),
        (UNEXPECTED_STATE, "the contract refused with malformed error 0x" + UNEXPECTED_STATE.hex()),
        (
            UNEXPECTED_STATE + encode(["bytes32", "uint8", "uint8"], [bytes(32), 1, 2]),
            f"proposal 0x{'00' * 32}: want it Ready, it is Waiting",
        ),
        (
            selector("TargetNotGoverned(uint8,address)") + encode(["uint8", "address"], [4, ADDRESS]),
            "OsImage: want a contract that this operator owns, got " + ADDRESS,
        ),
        (
            selector("ERC1967InvalidImplementation(address)") + encode(["address"], [ADDRESS]),
            f"ERC1967InvalidImplementation(implementation={ADDRESS})",
        ),
    ],
)
def test_a_refusal_becomes_a_sentence(data: bytes, sentence: str) -> None:
    """Texts, panics, our errors with their values, OpenZeppelin's, unknown and malformed ones."""
    assert explain_revert(data) == sentence


def test_every_sentence_belongs_to_an_error_and_fits_its_values() -> None:
    """A sentence names only values that its error has; none is left over from an error that went away."""
    errors = {
        entry["name"]: {value["name"] for value in entry["inputs"]}
        for name in ARTIFACT_NAMES
        for entry in load_artifact(name).abi
        if entry["type"] == "error"
    }

    named = {name: set(re.findall(r"{(\w+)}", template)) for name, template in SENTENCES.items()}

    assert {name: values - errors.get(name, set()) for name, values in named.items()} == {name: set() for name in named}


def test_every_error_of_ours_has_a_sentence(project_root: Path) -> None:
    """Nobody meets one of our own errors as a bare name."""
    folder = project_root / "contracts"
    sources = "".join(path.read_text() for path in (*folder.glob("*.sol"), *folder.glob("interfaces/*.sol")))

    assert set(re.findall(r"^\s*error (\w+)\(", sources, re.MULTILINE)) <= set(SENTENCES)


@pytest.mark.parametrize(("name", "ours"), [("State", State), ("Kind", Kind)])
def test_enums_are_those_of_the_source(project_root: Path, name: str, ours: type[State] | type[Kind]) -> None:
    """Python's names and numbers of kinds and states are the contract's."""
    source = (project_root / "contracts/interfaces/IUpgradeOperator.sol").read_text()
    block = re.search(rf"enum {name} {{(.*?)}}", source, re.DOTALL)
    assert block is not None
    names = tuple(word.strip() for word in block[1].split(","))

    assert ENUMS[f"enum IUpgradeOperator.{name}"] == names
    assert [member.name.replace("_", "").lower() for member in ours] == [word.lower() for word in names]
    assert [member.value for member in ours] == list(range(len(names)))
