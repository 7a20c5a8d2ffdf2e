"""A Safe that is on the chain already: who owns it, how many must sign, and what its owners approved there.

Needs no compiled contract of Safe's: the few functions that owners use are described here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from web3 import Web3

from dstack.chain.safe import SafeSignature, SafeTransaction
from dstack.chain.tx import Call, simulate, translated
from dstack.errors import RefusedError
from dstack.values import Digest32

# The most Safes within Safes that are looked through.
MAX_NESTING = 4
_EXECUTE = "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,address,address,bytes)"
_EXECUTE_TYPES = _EXECUTE.removeprefix("execTransaction(").removesuffix(")").split(",")
_DIGEST = _EXECUTE.replace("execTransaction", "getTransactionHash").replace(",bytes)", ",uint256)")
_DIGEST_TYPES = [*_EXECUTE_TYPES[:-1], "uint256"]
_APPROVE = keccak(text="approveHash(bytes32)")[:4]


@dataclass(frozen=True, slots=True)
class SafeAccount:
    """One Safe as it stands: `threshold` of `owners` must sign; `nonce` is that of its next transaction."""

    address: ChecksumAddress
    version: str
    owners: tuple[ChecksumAddress, ...]
    threshold: int
    nonce: int


def read_safe(w3: Web3, address: ChecksumAddress) -> SafeAccount | None:
    """The Safe at *address*; None where there is no code, or the code does not answer as a Safe.

    Raises:
        ChainUnavailableError: The endpoint does not answer.
    """
    with translated():
        if not w3.eth.get_code(address):
            return None
    try:
        owners = _ask(w3, address, "getOwners()", "address[]")
        threshold = _ask(w3, address, "getThreshold()", "uint256")
        nonce = _ask(w3, address, "nonce()", "uint256")
        version = _ask(w3, address, "VERSION()", "string")
    except (RefusedError, DecodingError):
        return None
    return SafeAccount(address, version, tuple(map(Web3.to_checksum_address, owners)), threshold, nonce)


def safe_transaction(w3: Web3, safe: SafeAccount, call: Call, *, nonce: int | None = None) -> SafeTransaction:
    """*call*, to be made by *safe*, after it was simulated as the Safe's own.

    Args:
        w3: The chain.
        safe: Who makes the call.
        call: The call; it must have a contract.
        nonce: The Safe's number for it; None for the next.

    Raises:
        RefusedError: The contract called would refuse it, or the Safe has its owners sign in another way.
        ChainUnavailableError: The endpoint does not answer.
    """
    if call.to is None:
        raise RefusedError("Safe: want a call of a contract, got a contract to make")
    simulate(w3, safe.address, call)
    with translated():
        chain_id = w3.eth.chain_id
    made = SafeTransaction(chain_id, safe.address, call.to, call.data, safe.nonce if nonce is None else nonce)
    theirs = _ask(w3, safe.address, _DIGEST, "bytes32", _DIGEST_TYPES, made.values())
    if theirs != made.digest():
        raise RefusedError(
            f"Safe: {safe.address}, version {safe.version}, has owners sign another digest than 1.5 does"
        )
    return made


def approved_on_chain(w3: Web3, safe: SafeAccount, digest: Digest32) -> tuple[ChecksumAddress, ...]:
    """Owners of *safe* who approved *digest* by a transaction of their own: how an owner that is a contract signs.

    Raises:
        ChainUnavailableError: The endpoint does not answer.
    """
    question = "approvedHashes(address,bytes32)"
    approved = [
        owner
        for owner in safe.owners
        if _ask(w3, safe.address, question, "uint256", ["address", "bytes32"], [owner, bytes(digest)])
    ]
    return tuple(approved)


def approval_signature(owner: ChecksumAddress) -> SafeSignature:
    """What stands in place of a signature by an owner who approved on chain (Safe: v = 1)."""
    return SafeSignature(owner, bytes(12) + Web3.to_bytes(hexstr=owner) + bytes(32) + b"\x01")


def approve_call(transaction: SafeTransaction) -> Call:
    """What an owner that is a contract sends to agree to *transaction*."""
    return Call(transaction.safe, _APPROVE + encode(["bytes32"], [bytes(transaction.digest())]))


def approved_digest(data: bytes) -> Digest32 | None:
    """The digest that a call of `approveHash` approves; None for any other call."""
    return Digest32(data[4:]) if data[:4] == _APPROVE and len(data) == 4 + Digest32.SIZE else None


def execute_transaction_call(transaction: SafeTransaction, signatures: Sequence[SafeSignature]) -> Call:
    """What anybody sends to have the Safe make *transaction*."""
    ordered = sorted(signatures, key=lambda signature: int(signature.owner, 16))
    joined = b"".join(signature.signature for signature in ordered)
    arguments = [*transaction.values()[:-1], joined]
    return Call(transaction.safe, keccak(text=_EXECUTE)[:4] + encode(_EXECUTE_TYPES, arguments))


def _ask(
    w3: Web3,
    address: ChecksumAddress,
    signature: str,
    answer: str,
    types: Sequence[str] = (),
    values: Sequence[Any] = (),
) -> Any:
    question = keccak(text=signature)[:4] + encode(list(types), list(values))
    with translated():
        returned = w3.eth.call({"to": address, "data": Web3.to_hex(question)}, ccip_read_enabled=False)
    (value,) = decode([answer], bytes(returned))
    return value
