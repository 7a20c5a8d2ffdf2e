"""Writing to a chain: simulate, then sign, send and wait.

Keys stay inside the account objects; nothing here logs or shows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress, HexStr
from hexbytes import HexBytes
from requests.exceptions import RequestException
from web3 import Web3
from web3.exceptions import ContractLogicError, TimeExhausted, Web3Exception
from web3.types import TxParams, TxReceipt, Wei

from dstack.chain.client import printable
from dstack.chain.reverts import explain_revert
from dstack.errors import ChainUnavailableError, InputError, RefusedError
from dstack.values import bytes_from_hex

RECEIPT_SECONDS = 120.0
POLL_SECONDS = 0.05
SAY_SECONDS = 5.0
# What a call costs is estimated as of the newest block. Where a contract writes the time, writing the same second again
# is cheaper than writing the next: a second denial would run out of gas. What is not used is not paid.
GAS_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class Call:
    """What a transaction does; `to` is None where it makes a contract."""

    to: ChecksumAddress | None
    data: bytes


def _silent(_: str) -> None:
    """For callers who show no progress."""


def send(w3: Web3, account: LocalAccount, call: Call, *, say: Callable[[str], None] = _silent) -> TxReceipt:
    """Have *call* executed, paid and signed by *account*.

    Args:
        w3: The chain.
        account: Who sends it.
        call: What it does.
        say: Takes a sentence at each step, and every few seconds of waiting.

    Returns:
        The receipt of a transaction that succeeded.

    Raises:
        RefusedError: A contract refuses it; nothing was sent, unless the chain changed in between.
        ChainUnavailableError: The endpoint does not answer, or the transaction was not mined in time.
    """
    simulate(w3, account.address, call)
    say("simulated: the contracts would accept it")
    with translated():
        transaction = _priced(w3, account.address, call)
        signed = account.sign_transaction(cast("dict[str, Any]", transaction))
        sent = w3.eth.send_raw_transaction(signed.raw_transaction)
        say(f"sent transaction 0x{sent.hex()}; waiting for its block")
        receipt = _receipt(w3, sent, say)
    if receipt["status"] != 1:
        raise RefusedError(f"transaction 0x{sent.hex()}: refused in block {receipt['blockNumber']}")
    return receipt


def simulate(w3: Web3, sender: ChecksumAddress, call: Call) -> bytes:
    """What *call* would return if *sender* sent it now.

    Raises:
        RefusedError: A contract refuses it; the message says why.
        ChainUnavailableError: The endpoint does not answer.
    """
    with translated():
        # CCIP (EIP-3668) would let a contract name a web address to be fetched.
        return bytes(w3.eth.call(_transaction(sender, call), ccip_read_enabled=False))


def _transaction(sender: ChecksumAddress, call: Call) -> TxParams:
    transaction = TxParams({"from": sender, "data": HexStr("0x" + call.data.hex()), "value": Wei(0)})
    if call.to is not None:
        transaction["to"] = call.to
    return transaction


def _priced(w3: Web3, sender: ChecksumAddress, call: Call) -> TxParams:
    transaction = _transaction(sender, call)
    tip = w3.eth.max_priority_fee
    # Twice the base fee lasts for six full blocks in a row.
    transaction["maxFeePerGas"] = Wei(2 * w3.eth.get_block("latest")["baseFeePerGas"] + tip)
    transaction["maxPriorityFeePerGas"] = tip
    transaction["chainId"] = w3.eth.chain_id
    transaction["nonce"] = w3.eth.get_transaction_count(sender, "pending")
    transaction["gas"] = int(w3.eth.estimate_gas(transaction) * GAS_MARGIN)
    return transaction


def _receipt(w3: Web3, sent: HexBytes, say: Callable[[str], None]) -> TxReceipt:
    start = time.monotonic()
    while True:
        try:
            return w3.eth.wait_for_transaction_receipt(sent, timeout=SAY_SECONDS, poll_latency=POLL_SECONDS)
        except TimeExhausted:
            waited = time.monotonic() - start
            if waited >= RECEIPT_SECONDS:
                raise
            say(f"still waiting, {waited:.0f} s")


@contextmanager
def translated() -> Iterator[None]:
    """Turn web3's errors into ours.

    Raises:
        RefusedError: A contract refused.
        ChainUnavailableError: Anything else went wrong between the endpoint and us.
    """
    try:
        yield
    except ContractLogicError as exc:
        raise RefusedError(_reason(exc)) from exc
    except RequestException as exc:
        # Its text holds the whole URL, and that may hold a credential.
        status = f" {exc.response.status_code}" if exc.response is not None else ""
        raise ChainUnavailableError(f"chain: {type(exc).__name__}{status}") from exc
    except (Web3Exception, ValueError) as exc:
        raise ChainUnavailableError(f"chain: {type(exc).__name__}: {printable(str(exc))}") from exc


def _reason(error: ContractLogicError) -> str:
    if isinstance(error.data, str):
        try:
            return explain_revert(bytes_from_hex(error.data, what="revert data"))
        except InputError:
            return printable(error.data)
    return printable(str(error.message))
