"""UpgradeOperator's values, without a chain."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

import pytest
from eth_abi.abi import encode

from dstack.chain.action_data import DelayClass
from dstack.chain.client import Log
from dstack.chain.operator import (
    CONTENT_TYPE,
    PROPOSAL_QUEUED,
    Action,
    Content,
    Kind,
    State,
    parse_proposal,
    proposal_id,
)
from dstack.errors import ChainUnavailableError, ConfigError, InputError
from dstack.values import Digest32

ROOT = Path(__file__).resolve().parents[3]
OPERATOR = "0x" + "11" * 20
TARGET = "0x" + "22" * 20
ACTION = Action.of(Kind.OS_IMAGE, TARGET, b"\x05" * 32)
CODE = (Digest32(b"\x06" * 32), Digest32(bytes(32)))
CONTENT = Content((ACTION,), (), CODE, "ipfs://x")


def queued(**changes: object) -> Log:
    """A ProposalQueued event of one action, with *changes* after its id was made."""
    shown = {"nonce": 3, "ready_at": 1_800_000_000, "expires_at": 1_801_209_600, "kind": 4, "uri": "ipfs://x"}
    topic = proposal_id(1, OPERATOR, 3, CONTENT)
    shown |= changes
    content = ([(shown["kind"], TARGET, ACTION.data)], [], list(map(bytes, CODE)), shown["uri"])
    values = [shown["nonce"], shown["ready_at"], shown["expires_at"], content]
    types = ["uint256", "uint256", "uint256", CONTENT_TYPE]
    return Log((PROPOSAL_QUEUED, topic, bytes(12) + b"\x33" * 20), encode(types, values))


@pytest.mark.parametrize("enum", [Kind, State, DelayClass])
def test_numbers_are_those_of_the_contract(enum: type[IntEnum]) -> None:
    """Names in the order of the Solidity source, which numbers them by it."""
    source = (ROOT / "contracts/interfaces/IUpgradeOperator.sol").read_text()
    found = re.search(rf"enum {enum.__name__} {{(.*?)}}", re.sub(r"//.*|/\*(?s:.*?)\*/", "", source), re.DOTALL)
    assert found is not None
    names = [each.strip() for each in found[1].split(",")]

    assert [each.name.title().replace("_", "") for each in enum] == names
    assert [each.value for each in enum] == list(range(len(names)))


def test_an_event_that_holds_its_id_is_read() -> None:
    """Content, proposer and times come out as they went in."""
    proposal = parse_proposal(queued(), chain_id=1, operator=OPERATOR)

    assert (proposal.nonce, proposal.content, proposal.by) == (3, CONTENT, "0x" + "33" * 20)
    assert (proposal.ready_at.timestamp(), proposal.expires_at.timestamp()) == (1_800_000_000, 1_801_209_600)


@pytest.mark.parametrize("change", [{"nonce": 4}, {"kind": 5}, {"uri": "ipfs://y"}])
def test_content_that_an_endpoint_changed_is_refused(change: dict[str, object]) -> None:
    """An endpoint cannot show other actions than were proposed: the id is their digest."""
    with pytest.raises(ChainUnavailableError, match="shows other content for 0x"):
        parse_proposal(queued(**change), chain_id=1, operator=OPERATOR)


def test_an_event_of_another_chain_is_refused() -> None:
    """The chain id is bound into the id."""
    with pytest.raises(ChainUnavailableError, match="shows other content for 0x"):
        parse_proposal(queued(), chain_id=2, operator=OPERATOR)


@pytest.mark.parametrize(
    "log",
    [
        replace(queued(), data=b""),
        replace(queued(), data=queued().data[:-32]),
        replace(queued(), topics=queued().topics[:2]),
        queued(kind=len(Kind)),
        queued(ready_at=2**200),
    ],
)
def test_a_malformed_event_is_refused(log: Log) -> None:
    """Missing data or topics, an unknown kind and an impossible time are not events of ours."""
    with pytest.raises(ChainUnavailableError, match="shows a malformed ProposalQueued"):
        parse_proposal(log, chain_id=1, operator=OPERATOR)


@pytest.mark.parametrize(
    "other",
    [
        (2, OPERATOR, 0, CONTENT),
        (1, TARGET, 0, CONTENT),
        (1, OPERATOR, 1, CONTENT),
        (1, OPERATOR, 0, replace(CONTENT, actions=(ACTION, ACTION))),
        (1, OPERATOR, 0, replace(CONTENT, actions=(replace(ACTION, kind=Kind.KMS_DEVICE),))),
        (1, OPERATOR, 0, replace(CONTENT, actions=(replace(ACTION, data=bytes(32)),))),
        (1, OPERATOR, 0, replace(CONTENT, actions=(), rollback=(ACTION,))),
        (1, OPERATOR, 0, replace(CONTENT, code_hashes=CODE[::-1])),
        (1, OPERATOR, 0, replace(CONTENT, uri="x")),
    ],
)
def test_every_part_of_the_content_is_in_the_id(other: tuple[int, str, int, Content]) -> None:
    """Chain, contract, nonce, each action, the rollback, the code and the uri change the id."""
    assert proposal_id(*other) != proposal_id(1, OPERATOR, 0, CONTENT)


def test_an_address_is_padded_to_a_word() -> None:
    """The 20 bytes of an address stand in the low end of the word."""
    assert Action.of(Kind.GUARDIAN, OPERATOR, b"\x44" * 20).data == bytes(12) + b"\x44" * 20


@pytest.mark.parametrize("length", [0, 19, 21, 31, 33, 48])
def test_values_of_another_length_are_refused(length: int) -> None:
    """Nothing but 20 or 32 bytes is taken; nothing else is padded."""
    with pytest.raises(InputError, match=f"want 32 bytes, got {length}"):
        Action.of(Kind.COMPOSE_HASH, TARGET, bytes(length))


def test_a_target_must_be_an_address() -> None:
    """The zero address governs nothing."""
    with pytest.raises(ConfigError, match="target: want an address, got the zero address"):
        Action.of(Kind.COMPOSE_HASH, "0x" + "00" * 20, bytes(32))
