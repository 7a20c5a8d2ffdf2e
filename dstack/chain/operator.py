"""UpgradeOperator: its words as values, its functions as calls that a key or a Safe can send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from web3 import Web3
from web3.types import TxReceipt

from dstack.chain.bindings import encode_call
from dstack.chain.client import Log, parse_address
from dstack.chain.tx import Call
from dstack.errors import ChainUnavailableError
from dstack.values import Digest32

_ACTIONS_TYPE = "(uint8,address,bytes32)[]"
PROPOSAL_QUEUED = keccak(text=f"ProposalQueued(bytes32,address,uint256,uint256,uint256,{_ACTIONS_TYPE},string)")


class Kind(IntEnum):
    """What an action changes; what its value must be stands in `IUpgradeOperator.Kind`."""

    COMPOSE_HASH = 0
    DEVICE = 1
    ANY_DEVICE = 2
    OUTDATED_TCB = 3
    OS_IMAGE = 4
    KMS_AGGREGATED_MR = 5
    KMS_DEVICE = 6
    GATEWAY_APP_ID = 7
    APP_IMPLEMENTATION = 8
    GUARDIAN = 9
    CONTRACT_UPGRADES = 10


class State(IntEnum):
    """Where a proposal stands."""

    UNSET = 0
    WAITING = 1
    READY = 2
    EXECUTED = 3
    CANCELLED = 4
    EXPIRED = 5


@dataclass(frozen=True, slots=True)
class Action:
    """One change: of what kind, in which contract, of which value."""

    kind: Kind
    target: ChecksumAddress
    value: Digest32

    @classmethod
    def of(cls, kind: Kind, target: str, value: bytes) -> Action:
        """An action on the value *value*: 32 bytes, or the 20 of an address or app id.

        Raises:
            ConfigError: *target* is not an address.
            InputError: *value* is of another length.
        """
        word = bytes(12) + value if len(value) == 20 else value
        return cls(kind, parse_address(target, what="target"), Digest32(word))

    @classmethod
    def switch(cls, kind: Kind, target: str) -> Action:
        """An action of a kind that has no value of its own: ANY_DEVICE, OUTDATED_TCB, CONTRACT_UPGRADES."""
        return cls.of(kind, target, (1).to_bytes(32, "big"))


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposal with its content, which the chain holds only as an event.

    Attributes:
        ready_at: From then on anybody may execute it,
        expires_at: and before then.
    """

    operator: ChecksumAddress
    id: Digest32
    by: ChecksumAddress
    nonce: int
    actions: tuple[Action, ...]
    uri: str
    ready_at: datetime
    expires_at: datetime


def proposal_id(chain_id: int, operator: str, nonce: int, actions: Sequence[Action], uri: str) -> Digest32:
    """The id that UpgradeOperator gives this content: what a signer recomputes on a machine of their own."""
    types = ["uint256", "address", "uint256", _ACTIONS_TYPE, "string"]
    return Digest32(keccak(encode(types, [chain_id, operator, nonce, _abi(actions), uri])))


def propose_call(operator: ChecksumAddress, actions: Sequence[Action], uri: str) -> Call:
    """Owner: announce *actions*; their full content can be read at *uri*."""
    return Call(operator, encode_call("UpgradeOperator", "propose", _abi(actions), uri))


def execute_call(proposal: Proposal) -> Call:
    """Anybody: put a Ready proposal in force."""
    content = (proposal.id, _abi(proposal.actions), proposal.uri)
    return Call(proposal.operator, encode_call("UpgradeOperator", "execute", *content))


def cancel_call(proposal: Proposal) -> Call:
    """Owner or guardian: stop a proposal that is Waiting or Ready."""
    return Call(proposal.operator, encode_call("UpgradeOperator", "cancel", proposal.id))


def deny_call(operator: ChecksumAddress, actions: Sequence[Action]) -> Call:
    """Owner or guardian: take grants back at once."""
    return Call(operator, encode_call("UpgradeOperator", "deny", _abi(actions)))


def proposal_in(receipt: TxReceipt, *, chain_id: int, operator: ChecksumAddress) -> Proposal:
    """The one proposal that a transaction made.

    Raises:
        ChainUnavailableError: It made none, or more than one, or the endpoint shows other content than its id.
    """
    found = [
        Log(tuple(bytes(topic) for topic in log["topics"]), bytes(log["data"]))
        for log in receipt["logs"]
        if log["address"] == operator and bytes(log["topics"][0]) == PROPOSAL_QUEUED
    ]
    if len(found) != 1:
        raise ChainUnavailableError(f"UpgradeOperator: want one proposal in the transaction, got {len(found)}")
    return parse_proposal(found[0], chain_id=chain_id, operator=operator)


def parse_proposal(log: Log, *, chain_id: int, operator: ChecksumAddress) -> Proposal:
    """Read a `ProposalQueued` event; its content must have its id.

    Raises:
        ChainUnavailableError: It has not, or it is not such an event.
    """
    try:
        _, topic_id, topic_by = log.topics
        types = ["uint256", "uint256", "uint256", _ACTIONS_TYPE, "string"]
        nonce, ready_at, expires_at, actions, uri = decode(types, log.data)
        read = tuple(
            Action(Kind(kind), Web3.to_checksum_address(target), Digest32(raw)) for kind, target, raw in actions
        )
        times = [datetime.fromtimestamp(seconds, UTC) for seconds in (ready_at, expires_at)]
        by = Web3.to_checksum_address(topic_by[12:])
    except (DecodingError, ValueError, OverflowError) as exc:
        raise ChainUnavailableError("UpgradeOperator: the endpoint shows a malformed ProposalQueued") from exc
    if proposal_id(chain_id, operator, nonce, read, uri) != topic_id:
        raise ChainUnavailableError(f"UpgradeOperator: the endpoint shows other content for 0x{topic_id.hex()}")
    return Proposal(operator, Digest32(topic_id), by, nonce, read, uri, times[0], times[1])


def _abi(actions: Iterable[Action]) -> list[tuple[int, str, bytes]]:
    return [(int(action.kind), action.target, bytes(action.value)) for action in actions]
