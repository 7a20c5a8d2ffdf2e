"""Every event of the governed contracts, in the order in which they happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

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
    block_hash: bytes
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
        ChainUnavailableError: The endpoint does not answer, shows an event that cannot be decoded, or one of a block
            that is no longer part of the chain.
    """
    if not contracts:
        return ()
    wanted = FilterParams(
        {"address": list(contracts), "fromBlock": BlockNumber(first_block), "toBlock": BlockNumber(last_block)}
    )
    with translated():
        logs = w3.eth.get_logs(wanted)
    header_of = _headers(w3)
    found = []
    for log in sorted(logs, key=lambda log: (log["blockNumber"], log["logIndex"])):
        name = contracts.get(log["address"])
        decoded = None if name is None else _decoded(w3, name, log)
        if decoded is not None:
            header = header_of(log["blockNumber"])
            if log.get("removed") or bytes(log["blockHash"]) != header.hash:
                raise ChainUnavailableError(f"chain: reorganised at block {header.number} while its events were read")
            found.append(_past_event(log, header, *decoded))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Header:
    """A block as the endpoint has it now."""

    number: int
    hash: bytes
    at: datetime


def read_header(w3: Web3, block: int | Literal["latest"]) -> Header:
    """The block of this number as it is now.

    Raises:
        ChainUnavailableError: The endpoint does not answer, or has no such block.
    """
    with translated():
        found = w3.eth.get_block(block)
    return Header(found["number"], bytes(found["hash"]), datetime.fromtimestamp(found["timestamp"], UTC))


def require_unchanged(w3: Web3, header: Header) -> None:
    """Fail if *header* is no longer what the chain has at its number: what was read may be of two branches.

    Raises:
        ChainUnavailableError: So it is, or the endpoint does not answer.
    """
    if read_header(w3, header.number).hash != header.hash:
        raise ChainUnavailableError(f"chain: reorganised at block {header.number} while it was read; ask again")


def _past_event(log: LogReceipt, header: Header, name: str, arguments: Mapping[str, Any]) -> PastEvent:
    return PastEvent(
        at=header.at,
        block=header.number,
        block_hash=header.hash,
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


def _headers(w3: Web3) -> Callable[[int], Header]:
    @cache
    def header_of(block: int) -> Header:
        return read_header(w3, block)

    return header_of
