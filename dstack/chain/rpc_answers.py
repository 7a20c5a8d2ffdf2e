"""What JSON-RPC endpoints answer, taken apart; anything out of form is an endpoint that cannot be used."""

from __future__ import annotations

from dstack.chain.bounded_http import EndpointError
from dstack.chain.reading import Answer, Call, Question, Returned, Reverted
from dstack.chain.rpc import Failure, Request
from dstack.errors import InputError
from dstack.policy.decision import BlockRef
from dstack.values import Digest32, bytes_from_hex

# What geth, anvil and others answer when the contract itself refused (EIP-1474 leaves it open; 3 is geth's).
_REVERTED_CODE = 3
_REVERTED_WORDS = "execution reverted"
_NUMBER_DIGITS = 18
# Of the year 9999.
_LAST_SECOND = 253402300799


def question_at(question: Question, block: BlockRef) -> Request:
    """The request that asks *question* in the state of *block*, addressed by its hash (EIP-1898)."""
    state = {"blockHash": "0x" + block.hash.hex(), "requireCanonical": True}
    if isinstance(question, Call):
        return Request("eth_call", ({"to": question.address, "data": "0x" + question.data.hex()}, state))
    return Request("eth_getCode", (question.address, state))


def block_request(tag_or_number: str | int) -> Request:
    """The request for a block without its transactions."""
    name = hex(tag_or_number) if isinstance(tag_or_number, int) else tag_or_number
    return Request("eth_getBlockByNumber", (name, False))


def answer_of(question: Question, result: object) -> Answer:
    """What the endpoint answered to *question*.

    Raises:
        EndpointError: It answered out of form, or could not answer.
    """
    if isinstance(result, Failure):
        reverted = result.code == _REVERTED_CODE or _REVERTED_WORDS in result.message
        if isinstance(question, Call) and reverted:
            return Reverted(_bytes(result.data, "revert data") if isinstance(result.data, str) else b"")
        raise EndpointError("refusing", f"answers: {result.message}")
    return Returned(_bytes(result, "answer"))


def block_of(result: object, *, wanted: str) -> BlockRef:
    """The block that the endpoint answered.

    Raises:
        EndpointError: It has none, or answered out of form.
    """
    if isinstance(result, Failure):
        raise EndpointError("refusing", f"answers: {result.message}")
    if not isinstance(result, dict):
        raise EndpointError("refusing", f"has no {wanted} block")
    raw = _bytes(result.get("hash"), "block hash")
    if len(raw) != Digest32.SIZE:
        raise EndpointError("malformed", f"block hash: want {Digest32.SIZE} bytes, got {len(raw)}")
    timestamp = number_of(result.get("timestamp"), "block time")
    if timestamp > _LAST_SECOND:
        raise EndpointError("malformed", f"block time: want at most {_LAST_SECOND}, got {timestamp}")
    return BlockRef(number_of(result.get("number"), "block number"), Digest32(raw), timestamp)


def number_of(result: object, what: str) -> int:
    """A number, as JSON-RPC writes it.

    Raises:
        EndpointError: It is not one.
    """
    try:
        if isinstance(result, str) and result.startswith("0x") and len(result) <= _NUMBER_DIGITS:
            return int(result, 16)
    except ValueError:
        pass
    raise EndpointError("malformed", f"{what}: want a hexadecimal number, got something else")


def _bytes(value: object, what: str) -> bytes:
    if not isinstance(value, str):
        raise EndpointError("malformed", f"{what}: want hexadecimal, got {type(value).__name__}")
    try:
        return bytes_from_hex(value, what=what)
    except InputError as exc:
        raise EndpointError("malformed", f"{what}: want hexadecimal") from exc
