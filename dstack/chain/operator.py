"""UpgradeOperator: its words as values, its functions as calls that a key or a Safe can send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

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

_ACTIONS_TYPE = "(uint8,address,bytes)[]"
CONTENT_TYPE = f"({_ACTIONS_TYPE},{_ACTIONS_TYPE},bytes32[],string)"
PROPOSAL_QUEUED = keccak(text=f"ProposalQueued(bytes32,address,uint256,uint256,uint256,{CONTENT_TYPE})")


class Kind(IntEnum):
    """What an action changes; what its data must be stands in `IUpgradeOperator.Kind`."""

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
    VERSION = 11
    SUNSET = 12
    APP = 13
    FREEZE_RENEWAL = 14
    OWNER = 15
    DELAY = 16
    IMPLEMENTATION_UPGRADE = 17
    FREEZE_FOR_GOOD = 18
    KMS_INFO = 19
    KEY_EPOCH = 20
    FORCED_GUARDIAN = 21
    GENESIS = 22


class State(IntEnum):
    """Where a proposal stands."""

    UNSET = 0
    WAITING = 1
    READY = 2
    EXECUTED = 3
    CANCELLED = 4
    EXPIRED = 5
    ROLLED_BACK = 6


@dataclass(frozen=True, slots=True)
class Delays:
    """Between proposal and earliest execution, by `IUpgradeOperator.DelayClass`; of upgrades longest."""

    policy: timedelta
    roles: timedelta
    upgrades: timedelta

    def abi_tuple(self) -> tuple[int, int, int]:
        """In seconds, as the contract takes them."""
        policy, roles, upgrades = (int(each.total_seconds()) for each in (self.policy, self.roles, self.upgrades))
        return policy, roles, upgrades


@dataclass(frozen=True, slots=True)
class Action:
    """One change: of what kind, in which contract, and what exactly."""

    kind: Kind
    target: ChecksumAddress
    data: bytes

    @classmethod
    def of(cls, kind: Kind, target: str, value: bytes) -> Action:
        """An action on the value *value*: 32 bytes, or the 20 of an address or app id.

        Raises:
            ConfigError: *target* is not an address.
            InputError: *value* is of another length.
        """
        word = bytes(12) + value if len(value) == 20 else value
        return cls(kind, parse_address(target, what="target"), bytes(Digest32(word)))

    @classmethod
    def switch(cls, kind: Kind, target: str) -> Action:
        """An action that has no value of its own: ANY_DEVICE, FREEZE_FOR_GOOD, to deny OUTDATED_TCB or upgrades."""
        return cls.of(kind, target, (1).to_bytes(32, "big"))

    def abi_tuple(self) -> tuple[int, str, bytes]:
        """As the contract takes it."""
        return int(self.kind), self.target, self.data


@dataclass(frozen=True, slots=True)
class Content:
    """All of a proposal that its id is the digest of.

    Attributes:
        code_hashes: Two for each action, of `actions` and then of `rollback`; see `IUpgradeOperator.Content`.
    """

    actions: tuple[Action, ...]
    rollback: tuple[Action, ...]
    code_hashes: tuple[Digest32, ...]
    uri: str

    def abi_tuple(self) -> tuple[list[Any], list[Any], list[bytes], str]:
        """As the contract takes it."""
        actions, rollback = ([action.abi_tuple() for action in part] for part in (self.actions, self.rollback))
        return actions, rollback, [bytes(each) for each in self.code_hashes], self.uri

    @classmethod
    def from_abi_tuple(cls, read: tuple[Any, Any, Any, str]) -> Content:
        """What `abi_tuple` gave, as an ABI decoder gives it back.

        Raises:
            ValueError: An action is of a kind that there is not.
        """
        actions, rollback, code_hashes, uri = read
        return cls(_actions(actions), _actions(rollback), tuple(map(Digest32, code_hashes)), uri)


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
    content: Content
    ready_at: datetime
    expires_at: datetime


def proposal_id(chain_id: int, operator: str, nonce: int, content: Content) -> Digest32:
    """The id that UpgradeOperator gives this content: what a signer recomputes on a machine of their own."""
    types = ["uint256", "address", "uint256", CONTENT_TYPE]
    return Digest32(keccak(encode(types, [chain_id, operator, nonce, content.abi_tuple()])))


def propose_call(operator: ChecksumAddress, content: Content) -> Call:
    """Owner: announce *content*; what it stands for can be read at its uri."""
    return Call(operator, encode_call("UpgradeOperator", "propose", content.abi_tuple()))


def execute_call(proposal: Proposal) -> Call:
    """Anybody: put a Ready proposal in force."""
    return Call(proposal.operator, encode_call("UpgradeOperator", "execute", proposal.id, proposal.content.abi_tuple()))


def agree_to_rollback_call(proposal: Proposal) -> Call:
    """Owner or guardian: agree to the rollback of an executed proposal, for the other one to run."""
    return Call(proposal.operator, encode_call("UpgradeOperator", "agreeToRollback", proposal.id))


def roll_back_call(proposal: Proposal) -> Call:
    """Owner or guardian, after the other one agreed: run the rollback that was proposed with it."""
    return Call(
        proposal.operator, encode_call("UpgradeOperator", "rollBack", proposal.id, proposal.content.abi_tuple())
    )


def cancel_call(proposal: Proposal) -> Call:
    """Owner or guardian: stop a proposal that is Waiting or Ready."""
    return Call(proposal.operator, encode_call("UpgradeOperator", "cancel", proposal.id))


def anchor_call(operator: ChecksumAddress, app: ChecksumAddress, digest: Digest32) -> Call:
    """Anybody: put the digest of a handover's receipt on record."""
    return Call(operator, encode_call("UpgradeOperator", "anchorReceipt", app, bytes(digest)))


def deny_call(operator: ChecksumAddress, actions: Sequence[Action]) -> Call:
    """Owner or guardian: take grants back at once."""
    return Call(operator, encode_call("UpgradeOperator", "deny", [action.abi_tuple() for action in actions]))


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
        nonce, ready_at, expires_at, read = decode(["uint256", "uint256", "uint256", CONTENT_TYPE], log.data)
        content = Content.from_abi_tuple(read)
        times = [datetime.fromtimestamp(seconds, UTC) for seconds in (ready_at, expires_at)]
        by = Web3.to_checksum_address(topic_by[12:])
    except (DecodingError, ValueError, OverflowError) as exc:
        raise ChainUnavailableError("UpgradeOperator: the endpoint shows a malformed ProposalQueued") from exc
    if proposal_id(chain_id, operator, nonce, content) != topic_id:
        raise ChainUnavailableError(f"UpgradeOperator: the endpoint shows other content for 0x{topic_id.hex()}")
    return Proposal(operator, Digest32(topic_id), by, nonce, content, times[0], times[1])


def _actions(read: Iterable[tuple[int, str, bytes]]) -> tuple[Action, ...]:
    return tuple(Action(Kind(kind), Web3.to_checksum_address(target), bytes(data)) for kind, target, data in read)
