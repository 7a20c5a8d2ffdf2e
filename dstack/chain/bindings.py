"""web3's view of the committed artifacts."""

from __future__ import annotations

from typing import Any

from eth_typing import ChecksumAddress
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
    return Web3.to_bytes(hexstr=_OFFLINE.eth.contract(abi=load_artifact(name).abi).encode_abi(function, args=arguments))


def encode_creation(name: str, *arguments: Any) -> bytes:
    """Creation code of artifact *name* with its constructor's arguments."""
    artifact = load_artifact(name)
    creation = _OFFLINE.eth.contract(abi=artifact.abi, bytecode=artifact.bytecode).constructor(*arguments)
    return Web3.to_bytes(hexstr=creation.data_in_transaction)
