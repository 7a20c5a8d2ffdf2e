"""JSON-RPC to one endpoint: the state of one block, and nothing between yes and no.

Whoever runs the endpoint can withhold, delay and lie; nothing here notices a lie. Its URL may hold a credential, so
errors name only its host.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from eth_typing import ChecksumAddress
from requests.exceptions import RequestException
from web3 import HTTPProvider, Web3
from web3.types import RPCEndpoint

from dstack.chain.reading import Answer, Call, Question, Reading, Returned, Reverted
from dstack.errors import ChainUnavailableError, ConfigError, InputError
from dstack.policy.decision import BlockRef
from dstack.values import Digest32, bytes_from_hex
from dstack.web.urls import shown_url

BLOCK_TAGS = ("finalized", "safe", "latest")
DEFAULT_TIMEOUT = 3.0
ADDRESS_SIZE = 20
# What geth, anvil and others answer when the contract itself refused (EIP-1474 leaves it open; 3 is geth's).
_REVERTED_CODE = 3
_REVERTED_WORDS = "execution reverted"


class CallRevertedError(Exception):
    """The contract refused the call; an answer for whoever asked, so it never leaves this package."""

    def __init__(self, data: bytes) -> None:
        super().__init__("the contract reverted")
        self.data = data


@dataclass(frozen=True, slots=True)
class Log:
    """One event as it stands in a block; the first topic is its kind."""

    topics: tuple[bytes, ...]
    data: bytes


class ChainClient:
    """Asks one endpoint.

    Attributes:
        block_tag: Which block answers rest on: "finalized", "safe" or "latest".
    """

    def __init__(self, rpc_url: str, *, timeout: float = DEFAULT_TIMEOUT, block_tag: str = "finalized") -> None:
        """Take the settings; the endpoint is not asked yet.

        Args:
            rpc_url: http or https.
            timeout: Seconds that one request may wait for an answer.
            block_tag: See above.

        Raises:
            ConfigError: The URL or the tag is not of its form.
        """
        if block_tag not in BLOCK_TAGS:
            raise ConfigError(f"block tag: want one of {', '.join(BLOCK_TAGS)}, got {block_tag!r}")
        self.block_tag = block_tag
        self._endpoint = shown_endpoint(rpc_url)
        # No retries: how long an answer may take is the caller's decision, and the timeout states it.
        self._provider = HTTPProvider(rpc_url, request_kwargs={"timeout": timeout}, exception_retry_configuration=None)

    def __repr__(self) -> str:
        return f"ChainClient({self._endpoint!r}, block_tag={self.block_tag!r})"

    @property
    def chain_id(self) -> int:
        """The chain that the endpoint says it is on.

        Raises:
            ChainUnavailableError: It does not answer.
        """
        return self._integer(self._ask("eth_chainId"), "chain id")

    def block(self) -> BlockRef:
        """The block that `block_tag` means now.

        Raises:
            ChainUnavailableError: The endpoint does not answer, or has no such block.
        """
        answer = self._ask("eth_getBlockByNumber", self.block_tag, False)
        if not isinstance(answer, dict):
            raise ChainUnavailableError(f"{self._endpoint}: has no {self.block_tag} block")
        return BlockRef(
            number=self._integer(answer.get("number"), "block number"),
            hash=self._block_hash(answer.get("hash")),
            timestamp=self._integer(answer.get("timestamp"), "block time"),
        )

    def call(self, address: str, data: bytes, block: BlockRef) -> bytes:
        """What the contract at *address* returns to *data* in the state of *block*, addressed by its hash (EIP-1898).

        Raises:
            CallRevertedError: The contract refused.
            ChainUnavailableError: The endpoint does not answer, or no longer has that block.
        """
        transaction = {"to": address, "data": "0x" + data.hex()}
        return self._bytes(self._ask("eth_call", transaction, _in(block)), "call")

    def code(self, address: str, block: BlockRef) -> bytes:
        """The code at *address* in the state of *block*; empty where there is no contract.

        Raises:
            ChainUnavailableError: As `call`.
        """
        return self._bytes(self._ask("eth_getCode", address, _in(block)), "code")

    def read(self, questions: Sequence[Question]) -> Reading:
        """The answers to *questions*, all in the state of the block that `block_tag` means now.

        Raises:
            ChainUnavailableError: As `call`.
        """
        chain_id, block = self.chain_id, self.block()
        return Reading(chain_id, block, tuple(self._answer(question, block) for question in questions))

    def _answer(self, question: Question, block: BlockRef) -> Answer:
        if not isinstance(question, Call):
            return Returned(self.code(question.address, block))
        try:
            return Returned(self.call(question.address, question.data, block))
        except CallRevertedError as exc:
            return Reverted(exc.data)

    def logs(self, address: str, topic: bytes, *, since: int, until: BlockRef) -> list[Log]:
        """Events of one kind of the contract at *address*, in order.

        Args:
            address: The contract.
            topic: keccak256 of the event's signature.
            since: Number of the first block to look at.
            until: The last one.

        Raises:
            ChainUnavailableError: The endpoint does not answer, or not with a list.
        """
        blocks = {"fromBlock": hex(since), "toBlock": hex(until.number)}
        answer = self._ask("eth_getLogs", {"address": address, "topics": ["0x" + topic.hex()], **blocks})
        if not isinstance(answer, list):
            raise ChainUnavailableError(f"{self._endpoint}: events: want a list, got {type(answer).__name__}")
        return [self._log(entry) for entry in answer]

    def _log(self, entry: object) -> Log:
        if not isinstance(entry, dict) or not isinstance(entry.get("topics"), list):
            raise ChainUnavailableError(f"{self._endpoint}: events: want topics and data")
        topics = tuple(self._bytes(topic, "event topic") for topic in entry["topics"])
        return Log(topics, self._bytes(entry.get("data"), "event data"))

    def _ask(self, method: str, *parameters: object) -> object:
        try:
            answer = cast("dict[str, Any]", self._provider.make_request(RPCEndpoint(method), list(parameters)))
        except (RequestException, ValueError) as exc:
            raise ChainUnavailableError(f"{self._endpoint}: {method}: {type(exc).__name__}") from exc
        if isinstance(answer, dict) and answer.get("error") is None and "result" in answer:
            return answer["result"]
        error = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(error, dict):
            raise ChainUnavailableError(f"{self._endpoint}: {method}: want a JSON-RPC answer, got something else")
        message, data = str(error.get("message")), error.get("data")
        if method == "eth_call" and (error.get("code") == _REVERTED_CODE or _REVERTED_WORDS in message):
            raise CallRevertedError(self._bytes(data, "revert data") if isinstance(data, str) else b"")
        raise ChainUnavailableError(f"{self._endpoint}: {method}: {printable(message)}")

    def _integer(self, value: object, what: str) -> int:
        try:
            return int(cast("str", value), 16)
        except (TypeError, ValueError) as exc:
            raise ChainUnavailableError(f"{self._endpoint}: {what}: want a hexadecimal number, got {value!r}") from exc

    def _bytes(self, value: object, what: str) -> bytes:
        if not isinstance(value, str):
            raise ChainUnavailableError(f"{self._endpoint}: {what}: want hexadecimal, got {type(value).__name__}")
        try:
            return bytes_from_hex(value, what=what)
        except InputError as exc:
            raise ChainUnavailableError(f"{self._endpoint}: {what}: want hexadecimal") from exc

    def _block_hash(self, value: object) -> Digest32:
        raw = self._bytes(value, "block hash")
        if len(raw) != Digest32.SIZE:
            raise ChainUnavailableError(f"{self._endpoint}: block hash: want {Digest32.SIZE} bytes, got {len(raw)}")
        return Digest32(raw)


def parse_address(text: str, *, what: str) -> ChecksumAddress:
    """An address with its checksum, from 0x and 40 digits in either case.

    Raises:
        ConfigError: *text* is not an address, or is the zero address.
    """
    digits = text.removeprefix("0x")
    if len(digits) != 2 * ADDRESS_SIZE or digits == text or not set(digits) <= set(string.hexdigits):
        raise ConfigError(f"{what}: want 0x and 40 hexadecimal digits, got {text[:80]!r}")
    if int(digits, 16) == 0:
        raise ConfigError(f"{what}: want an address, got the zero address")
    return Web3.to_checksum_address(text)


def checked_address(text: str, *, what: str) -> ChecksumAddress:
    """An address whose checksum (EIP-55) is right; one in a single case has none, and is taken.

    Raises:
        ConfigError: *text* is not an address, is the zero address, or its upper and lower case do not fit its digits.
    """
    address = parse_address(text, what=what)
    digits = text.removeprefix("0x")
    if digits not in (digits.lower(), digits.upper()) and text != address:
        raise ConfigError(f"{what}: wrong checksum: the upper and lower case of {text} do not fit; a digit is wrong")
    return address


def printable(text: str, limit: int = 200) -> str:
    """Foreign text in a form that is safe to log: at most *limit* characters, on one line, no control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])


def _in(block: BlockRef) -> dict[str, object]:
    return {"blockHash": "0x" + block.hash.hex(), "requireCanonical": True}


def shown_endpoint(rpc_url: str) -> str:
    """What may be shown of an endpoint: see `shown_url`.

    Raises:
        ConfigError: The URL is not of its form.
    """
    try:
        return shown_url(rpc_url)
    except ValueError as exc:
        raise ConfigError(f"RPC URL: {exc}") from exc
