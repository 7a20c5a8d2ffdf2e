"""web3's view of the committed artifacts."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from eth_typing import ABIFunction, ChecksumAddress
from eth_utils.abi import abi_to_signature, function_abi_to_4byte_selector, get_abi_input_types
from web3 import Web3
from web3.contract import Contract

from dstack.chain.artifacts import load_artifact

# Encoding needs no endpoint.
_OFFLINE = Web3()


def contract_at(w3: Web3, name: str, address: ChecksumAddress) -> Contract:
    """The contract of artifact *name* at *address*."""
    return w3.eth.contract(address=address, abi=load_artifact(name).abi)


def encode_call(name: str, function: str, *arguments: Any) -> bytes:
    """Call data for *function* (with its types where it is overloaded) of artifact *name*."""
    selector, types = _function(name, function)
    return selector + _OFFLINE.codec.encode(types, arguments)


def encode_creation(name: str, *arguments: Any) -> bytes:
    """Creation code of artifact *name* with its constructor's arguments."""
    artifact = load_artifact(name)
    creation = _OFFLINE.eth.contract(abi=artifact.abi, bytecode=artifact.bytecode).constructor(*arguments)
    return Web3.to_bytes(hexstr=creation.data_in_transaction)


@cache
def _function(name: str, function: str) -> tuple[bytes, list[str]]:
    """The selector and the types of the arguments. Finding them takes far longer than encoding what they are for."""
    functions = (cast("ABIFunction", each) for each in load_artifact(name).abi if each["type"] == "function")
    (found,) = (each for each in functions if function in (each["name"], abi_to_signature(each)))
    return function_abi_to_4byte_selector(found), get_abi_input_types(found)
