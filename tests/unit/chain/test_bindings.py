"""Call data: as web3's contracts make it, for every function of every contract."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi.exceptions import EncodingError
from eth_utils.abi import abi_to_signature
from web3 import Web3

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import encode_call

FUNCTIONS = [
    (name, function)
    for name in ("KmsAuth", "AppAuth", "UpgradeOperator")
    for function in load_artifact(name).abi
    if function["type"] == "function"
]
ADDRESS = Web3.to_checksum_address("0x" + "5a" * 20)


def value(parameter: dict[str, Any]) -> Any:
    """Something of the parameter's type; arrays have two of it."""
    kind: str = parameter["type"]
    if kind.endswith("[]"):
        return [value({**parameter, "type": kind[:-2]})] * 2
    if kind == "tuple":
        return tuple(value(component) for component in parameter["components"])
    if kind.startswith("uint"):
        return 2 ** int(kind[4:]) - 1
    if kind.startswith("bytes"):
        return b"\xc3" * int(kind[5:] or 70)
    return {"address": ADDRESS, "bool": True, "string": "a téxt that is longer than one word of 32 bytes"}[kind]


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[f"{name}.{each['name']}" for name, each in FUNCTIONS])
def test_call_data_is_what_web3_makes(name: str, function: dict[str, Any]) -> None:
    """With the types of the arguments, as where a name is there twice."""
    signature = abi_to_signature(function)  # type: ignore[arg-type]
    arguments = [value(parameter) for parameter in function["inputs"]]

    expected = Web3().eth.contract(abi=load_artifact(name).abi).encode_abi(signature, args=arguments)

    assert encode_call(name, signature, *arguments).hex() == expected.removeprefix("0x")


def test_a_name_is_enough_where_it_is_there_once() -> None:
    """Its selector, and one word for the argument."""
    assert encode_call("UpgradeOperator", "genesisOf", ADDRESS) == bytes.fromhex("f6913a5d" + "00" * 12 + "5a" * 20)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (ADDRESS,),
        (ADDRESS, bytes(31)),
        (ADDRESS, bytes(33)),
        ("0x5a", bytes(32)),
        (ADDRESS, bytes(32), 1),
        (1, bytes(32)),
    ],
)
def test_nothing_is_padded_or_left_out(arguments: tuple[Any, ...]) -> None:
    """A digest has 32 bytes and an address 20, or there is no call."""
    with pytest.raises(EncodingError):
        encode_call("UpgradeOperator", "anchorReceipt", *arguments)
