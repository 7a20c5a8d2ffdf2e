"""Safe 1.5: a multisig as owner of UpgradeOperator, from the contracts that Safe publishes.

Owners sign a transaction's EIP-712 digest on machines of their own; anybody may send it once enough have signed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account.messages import SignableMessage, encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from web3 import Web3
from web3.contract import Contract
from web3.logs import DISCARD
from web3.types import TxReceipt

from dstack.chain.tx import Call, send, simulate, translated
from dstack.errors import RefusedError, ToolUnavailableError
from dstack.values import Digest32

# Folder of the compiled contracts in the npm package @safe-global/safe-smart-account.
ARTIFACTS = Path("node_modules/@safe-global/safe-smart-account/build/artifacts/contracts")
ZERO_ADDRESS = Web3.to_checksum_address("0x" + "00" * 20)

_CALL_OPERATION = 0
_SAFE_TX = (
    ("to", "address"),
    ("value", "uint256"),
    ("data", "bytes"),
    ("operation", "uint8"),
    ("safeTxGas", "uint256"),
    ("baseGas", "uint256"),
    ("gasPrice", "uint256"),
    ("gasToken", "address"),
    ("refundReceiver", "address"),
    ("nonce", "uint256"),
)
_DOMAIN = (("chainId", "uint256"), ("verifyingContract", "address"))
# Codes that a Safe refuses with, as its documentation lists them.
CODES = {
    "GS013": "the call inside fails",
    "GS020": "want signatures of as many owners as the threshold says, got fewer",
    "GS025": "an owner has not approved it on the chain",
    "GS026": "a signature is not by an owner, or they are not in order, or not of this transaction",
}


@dataclass(frozen=True, slots=True)
class SafeTransaction:
    """One call that a Safe shall make; `nonce` is the Safe's own."""

    chain_id: int
    safe: ChecksumAddress
    to: ChecksumAddress
    data: bytes
    nonce: int

    def message(self) -> SignableMessage:
        """What owners sign, in the form of EIP-712."""
        types = {
            "EIP712Domain": [{"name": name, "type": kind} for name, kind in _DOMAIN],
            "SafeTx": [{"name": name, "type": kind} for name, kind in _SAFE_TX],
        }
        domain = {"chainId": self.chain_id, "verifyingContract": self.safe}
        fields = dict(zip((name for name, _ in _SAFE_TX), self.values(), strict=True))
        return encode_typed_data(
            full_message={"types": types, "primaryType": "SafeTx", "domain": domain, "message": fields}
        )

    def digest(self) -> Digest32:
        """What a wallet shows before it signs."""
        message = self.message()
        return Digest32(keccak(b"\x19" + message.version + message.header + message.body))

    def domain_hash(self) -> Digest32:
        """The first of the two hashes that a hardware wallet shows: which Safe on which chain."""
        return Digest32(self.message().header)

    def message_hash(self) -> Digest32:
        """The second: what the Safe shall do."""
        return Digest32(self.message().body)

    def values(self) -> tuple[Any, ...]:
        """Its fields in the order of Safe's `SafeTx`: a plain call without value, refund or gas limit."""
        return (self.to, 0, self.data, _CALL_OPERATION, 0, 0, 0, ZERO_ADDRESS, ZERO_ADDRESS, self.nonce)


@dataclass(frozen=True, slots=True)
class SafeSignature:
    """65 bytes by one owner."""

    owner: ChecksumAddress
    signature: bytes


class Safe:
    """One Safe on one chain."""

    def __init__(self, w3: Web3, address: ChecksumAddress, artifacts: Path = ARTIFACTS) -> None:
        """Take the settings; nothing is asked yet.

        Raises:
            ToolUnavailableError: Safe's compiled contracts are not in *artifacts*.
        """
        self._w3 = w3
        self.address = address
        self._contract = _contract(w3, artifacts, "Safe.sol/Safe", address)

    def transaction(self, call: Call) -> SafeTransaction:
        """The Safe's next transaction, if it is this call.

        Raises:
            RefusedError: The contract called would refuse it.
            ChainUnavailableError: The endpoint does not answer.
        """
        if call.to is None:
            raise RefusedError("Safe: want a call of a contract, got a contract to make")
        simulate(self._w3, self.address, call)
        with translated():
            nonce = self._contract.functions.nonce().call()
            return SafeTransaction(self._w3.eth.chain_id, self.address, call.to, call.data, nonce)

    def execute(
        self, sender: LocalAccount, transaction: SafeTransaction, signatures: Iterable[SafeSignature]
    ) -> TxReceipt:
        """Have the Safe make the call; *sender* only pays.

        Raises:
            RefusedError: Too few signatures, or wrong ones, or the call fails.
            ChainUnavailableError: The endpoint does not answer.
        """
        ordered = sorted(signatures, key=lambda signature: int(signature.owner, 16))
        joined = b"".join(signature.signature for signature in ordered)
        arguments = [*transaction.values()[:-1], joined]
        data = Web3.to_bytes(hexstr=self._contract.encode_abi("execTransaction", args=arguments))
        try:
            return send(self._w3, sender, Call(self.address, data))
        except RefusedError as exc:
            raise RefusedError(f"Safe: {CODES.get(str(exc), str(exc))}") from exc


def sign_safe_transaction(owner: LocalAccount, transaction: SafeTransaction) -> SafeSignature:
    """Sign with one owner's key."""
    return SafeSignature(owner.address, bytes(owner.sign_message(transaction.message()).signature))


def deploy_safe(
    w3: Web3,
    deployer: LocalAccount,
    owners: Sequence[ChecksumAddress],
    *,
    threshold: int,
    artifacts: Path = ARTIFACTS,
) -> Safe:
    """Deploy Safe's own contracts and one Safe of *owners*, of whom *threshold* must sign.

    Raises:
        ToolUnavailableError: Safe's compiled contracts are not in *artifacts*.
        RefusedError: The threshold is not between 1 and the number of owners, or an owner is named twice.
        ChainUnavailableError: The endpoint does not answer.
    """
    singleton = _deploy(w3, deployer, artifacts, "Safe.sol/Safe")
    fallback = _deploy(w3, deployer, artifacts, "handler/CompatibilityFallbackHandler.sol/CompatibilityFallbackHandler")
    factory = _contract(
        w3,
        artifacts,
        "proxies/SafeProxyFactory.sol/SafeProxyFactory",
        _deploy(w3, deployer, artifacts, "proxies/SafeProxyFactory.sol/SafeProxyFactory"),
    )
    arguments = [list(owners), threshold, ZERO_ADDRESS, b"", fallback, ZERO_ADDRESS, 0, ZERO_ADDRESS]
    set_up = _contract(w3, artifacts, "Safe.sol/Safe", singleton).encode_abi("setup", args=arguments)
    data = Web3.to_bytes(hexstr=factory.encode_abi("createProxyWithNonce", args=[singleton, set_up, 0]))
    receipt = send(w3, deployer, Call(factory.address, data))
    (event,) = factory.events.ProxyCreation().process_receipt(receipt, errors=DISCARD)
    return Safe(w3, event["args"]["proxy"], artifacts)


def _deploy(w3: Web3, deployer: LocalAccount, artifacts: Path, name: str) -> ChecksumAddress:
    code = Web3.to_bytes(hexstr=_artifact(artifacts, name)["bytecode"])
    address = send(w3, deployer, Call(None, code))["contractAddress"]
    assert address is not None
    return address


def _contract(w3: Web3, artifacts: Path, name: str, address: ChecksumAddress) -> Contract:
    return w3.eth.contract(address=address, abi=_artifact(artifacts, name)["abi"])


def _artifact(artifacts: Path, name: str) -> Any:
    path = artifacts / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise ToolUnavailableError(f"Safe: want its compiled contract at {path}, got none; run npm ci") from exc
