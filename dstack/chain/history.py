"""Every event of the governed contracts, in the order in which they happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from eth_typing import BlockNumber, ChecksumAddress
from eth_utils.abi import abi_to_signature
from eth_utils.crypto import keccak
from web3 import Web3
from web3.exceptions import Web3Exception
from web3.types import FilterParams, LogReceipt

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import contract_at
from dstack.chain.client import Log
from dstack.chain.tx import translated
from dstack.errors import ChainUnavailableError


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One event of one contract; `arguments` by name as web3 decodes them; `index` is its place in the block."""

    at: datetime
    block: int
    index: int
    transaction: bytes
    contract: ChecksumAddress
    name: str
    arguments: Mapping[str, Any]
    log: Log


def past_events(
    w3: Web3, contracts: Mapping[ChecksumAddress, str], *, first_block: int, last_block: int
) -> tuple[PastEvent, ...]:
    """What *contracts*, artifact names by address, emitted from *first_block* to *last_block*, oldest first.

    Events that the artifact does not know, such as OpenZeppelin's own of a proxy, are left out.

    Raises:
        ChainUnavailableError: The endpoint does not answer, or shows an event that cannot be decoded.
    """
    if not contracts:
        return ()
    wanted = FilterParams(
        {"address": list(contracts), "fromBlock": BlockNumber(first_block), "toBlock": BlockNumber(last_block)}
    )
    with translated():
        logs = w3.eth.get_logs(wanted)
    time_of = _clock(w3)
    found = []
    for log in sorted(logs, key=lambda log: (log["blockNumber"], log["logIndex"])):
        name = contracts.get(log["address"])
        decoded = None if name is None else _decoded(w3, name, log)
        if decoded is not None:
            found.append(_past_event(log, time_of(log["blockNumber"]), *decoded))
    return tuple(found)


def _past_event(log: LogReceipt, at: datetime, name: str, arguments: Mapping[str, Any]) -> PastEvent:
    return PastEvent(
        at=at,
        block=log["blockNumber"],
        index=log["logIndex"],
        transaction=bytes(log["transactionHash"]),
        contract=log["address"],
        name=name,
        arguments=arguments,
        log=Log(tuple(bytes(topic) for topic in log["topics"]), bytes(log["data"])),
    )


def _decoded(w3: Web3, artifact: str, log: LogReceipt) -> tuple[str, Mapping[str, Any]] | None:
    if not log["topics"]:
        return None
    name = _event_names(artifact).get(bytes(log["topics"][0]))
    if name is None:
        return None
    try:
        event = contract_at(w3, artifact, log["address"]).events[name]().process_log(log)
    except (Web3Exception, ValueError) as exc:
        raise ChainUnavailableError(f"{artifact}: the endpoint shows a malformed {name}") from exc
    return name, event["args"]


@cache
def _event_names(artifact: str) -> dict[bytes, str]:
    entries: list[Any] = [entry for entry in load_artifact(artifact).abi if entry["type"] == "event"]
    return {keccak(text=abi_to_signature(entry)): entry["name"] for entry in entries}


def _clock(w3: Web3) -> Callable[[int], datetime]:
    @cache
    def time_of(block: int) -> datetime:
        with translated():
            return datetime.fromtimestamp(w3.eth.get_block(block)["timestamp"], UTC)

    return time_of
