"""What `KmsAuth` says: whether an app may have its keys, whether a KMS may have the root keys."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from dstack.chain.client import parse_address, printable
from dstack.chain.facts import Facts, KeptFacts
from dstack.chain.reading import Answer, Call, ChainReader, CodeAt, Reading, Reverted
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy.boot_info import BootInfo
from dstack.policy.decision import BlockRef, Decision, Denied, Rule, decide
from dstack.policy.key_epochs import FIRST_EPOCH, KeyEpochs

BOOT_INFO_TYPE = "(address,bytes32,address,bytes32,bytes32,bytes32,bytes32,string,string[])"
# ERC-165 id of IAppAuth: the selector of isAppAllowed.
APP_AUTH_ID = bytes.fromhex("1e079198")
# The last second of the year 9999, which is for ever.
_LAST_SECOND = 253402300799
_KNOWN_QUESTIONS = 1024
_KNOWN_ANSWERS = 256
_SHORT_ANSWER = 256


class KmsAuthReader:
    """Asks one KmsAuth. Each decision rests on one block, which it names; the reader decides which block that is."""

    def __init__(self, reader: ChainReader, address: str) -> None:
        """Take the settings; nothing is asked yet.

        Raises:
            ConfigError: *address* is not an address.
        """
        self._reader = reader
        self.address = parse_address(address, what="KmsAuth")
        self._gateway = Call(self.address, _call("gatewayAppId()", [], []))
        self._about = (self._gateway, Call(self.address, _call("appImplementation()", [], [])))
        self._epochs = Call(self.address, _call("keyEpoch()", [], []))
        self._facts = KeptFacts(self._read_facts)

    def close(self) -> None:
        """Wait for what is being asked beside its callers; to be called before the endpoints are closed."""
        self._facts.close()

    @property
    def chain_id(self) -> int:
        """The chain that is asked.

        Raises:
            ChainUnavailableError: It could not be asked.
        """
        return self._reader.read(()).chain_id

    def check(self, *, chain_id: int | None = None) -> BlockRef:
        """Establish that the settings lead to a KmsAuth; for the start of a program.

        Args:
            chain_id: The chain wanted; None for any.

        Returns:
            The block in whose state it is one.

        Raises:
            ConfigError: It is another chain, or no contract that answers to IAppAuth, or one that is no KmsAuth.
            ChainUnavailableError: It could not be asked.
        """
        question = _call("supportsInterface(bytes4)", ["bytes4"], [APP_AUTH_ID])
        reading = self._reader.read((CodeAt(self.address), Call(self.address, question), self._gateway))
        if chain_id is not None and reading.chain_id != chain_id:
            raise ConfigError(f"chain id: want {chain_id}, got {reading.chain_id}")
        code, supports, gateway = reading.answers
        if not code.data:
            raise ConfigError(f"KmsAuth: {self._missing(reading.block)}")
        if _decoded(["bool"], supports) != (True,):
            raise ConfigError(f"KmsAuth: the contract at {self.address} does not answer to IAppAuth")
        if _text(gateway) is None:
            raise ConfigError(f"KmsAuth: {self._other()}")
        self._facts.read()
        return reading.block

    def authorize_app(self, boot: BootInfo) -> Decision:
        """Ask whether the machine *boot* may have its app's keys.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        return self._authorize("isAppAllowed", boot, self._gateway)

    def authorize_kms(self, boot: BootInfo) -> Decision:
        """Ask whether the machine *boot* may have the root keys.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        return self._authorize("isKmsAllowed", boot)

    def gateway_app_id(self) -> str:
        """The gateway that apps are told to trust; empty when none was named.

        Raises:
            ChainUnavailableError: It could not be asked.
        """
        return self._facts.read().gateway_app_id

    def recent_facts(self) -> Facts | None:
        """What was last read, at once; None before anything was. What is old is asked for anew meanwhile."""
        return self._facts.recent()

    def _read_facts(self) -> Facts:
        reading = self._reader.read(self._about)
        gateway, implementation = _text(reading.answers[0]), _decoded(["address"], reading.answers[1])
        if gateway is None:
            raise ChainUnavailableError(f"KmsAuth: {self._no_answer(reading)}")
        return Facts(
            self.address,
            reading.chain_id,
            gateway,
            implementation[0] if implementation else "0x" + "00" * 20,
            reading.block,
            time.monotonic(),
        )

    def _authorize(self, function: str, boot: BootInfo, *more: Call) -> Decision:
        """What the contract decides; if *more* asks for the gateway, then together with that."""
        reading = self._reader.read((Call(self.address, _boot_question(function, boot)), self._epochs, *more))
        decision = _decision(function, reading.answers[0], reading.block, boot)
        if decision is None:
            raise ChainUnavailableError(f"KmsAuth: {self._no_answer(reading)}")
        # A denial is good from any endpoint of the chain, as soon as it has it.
        newer = (_decision(function, one.answers[0], one.block, boot) for one in reading.newer)
        denied = next((later for later in newer if isinstance(later, Denied)), None)
        if denied is not None or isinstance(decision, Denied):
            return denied or decision
        epochs, gateway = _key_epochs(reading.answers[1]), _text(reading.answers[2]) if more else ""
        if epochs is None or gateway is None:
            raise ChainUnavailableError(f"KmsAuth: {self._no_answer(reading)}")
        return replace(decision, epochs=epochs, gateway_app_id=gateway)

    def _no_answer(self, reading: Reading) -> str:
        (code,) = self._reader.read((CodeAt(self.address),)).answers
        if not code.data:
            return self._missing(reading.block)
        return self._other()

    def _other(self) -> str:
        return f"the contract at {self.address} does not answer as one"

    def _missing(self, block: BlockRef) -> str:
        return f"no contract at {self.address} in {self._reader.block_tag} block {block.number}"


def app_question(address: str, boot: BootInfo) -> Call:
    """The question `isAppAllowed`, for whoever asks it together with others; `app_decision` reads the answer."""
    return Call(address, _boot_question("isAppAllowed", boot))


def app_decision(answer: Answer, block: BlockRef, boot: BootInfo) -> Decision | None:
    """What an answer to `app_question` decides; None where it is not of that form."""
    return _decision("isAppAllowed", answer, block, boot)


def _decision(function: str, answer: Answer, block: BlockRef, boot: BootInfo) -> Decision | None:
    """The contract's answer as a decision; None where it is not of that form."""
    if isinstance(answer, Reverted):
        return decide(False, f"{function} reverted", block, _seen(boot))
    # The text may come from an app's own contract: taken as bytes, because it need not be UTF-8.
    decoded = _decoded(["bool", "bytes"], answer)
    if decoded is None:
        return None
    is_allowed, reason = decoded
    return decide(is_allowed, printable(reason.decode("utf-8", "replace")), block, _seen(boot))


def _key_epochs(answer: Answer) -> KeyEpochs | None:
    """The contract's key epochs; the first one of a contract that knows of none, None where it is not of that form."""
    if isinstance(answer, Reverted):
        return FIRST_EPOCH
    decoded = _decoded(["uint64", "uint64", "uint64"], answer)
    if decoded is None or decoded[1] != max(decoded[0] - 1, 0):
        return None
    current, _, until = decoded
    return KeyEpochs(current, datetime.fromtimestamp(min(until, _LAST_SECOND), UTC)) if current else FIRST_EPOCH


def _text(answer: Answer) -> str | None:
    """One text, as it may be shown; None where it is not of that form."""
    decoded = _decoded(["bytes"], answer)
    return None if decoded is None else printable(decoded[0].decode("utf-8", "replace"))


def _decoded(types: list[str], answer: Answer) -> tuple[Any, ...] | None:
    if isinstance(answer, Reverted):
        return None
    try:
        if len(answer.data) <= _SHORT_ANSWER:
            return _decoded_short(tuple(types), answer.data)
        return decode(types, answer.data)
    except (DecodingError, OverflowError):  # The library lets a length overflow that no memory could hold.
        return None


# A yes is always the same bytes.
@lru_cache(maxsize=_KNOWN_ANSWERS)
def _decoded_short(types: tuple[str, ...], data: bytes) -> tuple[Any, ...]:
    return decode(types, data)


def _call(signature: str, types: list[str], values: list[object]) -> bytes:
    return _selector(signature) + encode(types, values)


# About itself a KMS asks the same at every request, and machines of one app ask much alike.
@lru_cache(maxsize=_KNOWN_QUESTIONS)
def _boot_question(function: str, boot: BootInfo) -> bytes:
    return _call(f"{function}({BOOT_INFO_TYPE})", [BOOT_INFO_TYPE], [boot.abi_tuple()])


@cache
def _selector(signature: str) -> bytes:
    return keccak(text=signature)[:4]


def _seen(boot: BootInfo) -> dict[Rule, str]:
    app = "0x" + boot.app_id.hex()
    return {
        Rule.TCB_STATUS: boot.tcb_status,
        Rule.OS_IMAGE: boot.os_image_hash.hex(),
        Rule.AGGREGATED_MR: boot.mr_aggregated.hex(),
        Rule.KMS_DEVICE: boot.device_id.hex(),
        Rule.APP_REGISTERED: app,
        Rule.APP_FROZEN: app,
        Rule.APP_DEPLOYED: app,
        Rule.COMPOSE_HASH: boot.compose_hash.hex(),
        Rule.DEVICE: boot.device_id.hex(),
        Rule.APP_CONTRACT: app,
    }
