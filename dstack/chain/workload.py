"""What UpgradeOperator and KmsAuth say together, in the state of one block: whether a machine may have secrets.

KmsAuth asks about device and TCB status, UpgradeOperator about what was announced, freezes, sunsets; both must allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from dstack.chain.action_data import Genesis
from dstack.chain.bindings import encode_call
from dstack.chain.client import parse_address, printable
from dstack.chain.kms_auth import app_decision, app_question
from dstack.chain.reading import Answer, Call, ChainReader, CodeAt, Reverted
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy.boot_info import BootInfo
from dstack.policy.decision import BlockRef, Decision, Denied, Granted, Rule, decide
from dstack.values import AppId, Digest32, Register

_NONE = (b"", b"", b"", b"", b"")


@dataclass(frozen=True, slots=True)
class WorkloadAnswer:
    """What the chain says of one machine; *genesis* is None where none was recorded for its app."""

    decision: Decision
    genesis: Genesis | None


class WorkloadReader:
    """Asks one UpgradeOperator and one KmsAuth that it owns. Each answer rests on one block, which it names."""

    def __init__(self, reader: ChainReader, *, operator: str, kms_auth: str) -> None:
        """Take the settings; nothing is asked yet.

        Raises:
            ConfigError: What should be an address is none.
        """
        self._reader = reader
        self.operator = parse_address(operator, what="UpgradeOperator")
        self.kms_auth = parse_address(kms_auth, what="KmsAuth")

    def check(self, *, chain_id: int) -> BlockRef:
        """Establish that the settings lead to the contracts; for the start of a program.

        Raises:
            ConfigError: It is another chain, or there is no UpgradeOperator that owns this KmsAuth.
            ChainUnavailableError: It could not be asked.
        """
        questions = (
            CodeAt(self.operator),
            CodeAt(self.kms_auth),
            Call(self.operator, encode_call("UpgradeOperator", "MIN_DELAY")),
            Call(self.kms_auth, encode_call("KmsAuth", "owner")),
        )
        reading = self._reader.read(questions)
        if reading.chain_id != chain_id:
            raise ConfigError(f"chain id: want {chain_id}, got {reading.chain_id}")
        operator_code, kms_code, delay, owner = reading.answers
        for what, address, code in (
            ("UpgradeOperator", self.operator, operator_code),
            ("KmsAuth", self.kms_auth, kms_code),
        ):
            if not code.data:
                raise ConfigError(f"{what}: no contract at {address} in block {reading.block.number}")
        if _decoded(["uint256"], delay) is None:
            raise ConfigError(f"UpgradeOperator: the contract at {self.operator} does not answer as one")
        if _decoded(["address"], owner) != (self.operator.lower(),):
            raise ConfigError(f"KmsAuth: {self.kms_auth} is not owned by UpgradeOperator {self.operator}")
        return reading.block

    def block(self) -> BlockRef:
        """The block that answers rest on now.

        Raises:
            ChainUnavailableError: It could not be asked.
        """
        return self._reader.read((Call(self.operator, encode_call("UpgradeOperator", "MIN_DELAY")),)).block

    def genesis(self, app_id: AppId) -> Genesis | None:
        """What was recorded for an app.

        Raises:
            ChainUnavailableError: It could not be asked.
        """
        (answer,) = self._reader.read((self._genesis_question(app_id),)).answers
        return self._genesis_in(answer)

    def judge(self, boot: BootInfo, registers: Sequence[Register] = ()) -> WorkloadAnswer:
        """Ask whether the machine *boot* may have its app's secrets.

        Args:
            boot: As appraised.
            registers: MRTD and RTMR0 to RTMR3, if a version must list exactly these (RTMR3 may be left open there).

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        variants = [tuple(map(bytes, registers)), (*map(bytes, registers[:4]), b"")] if registers else [_NONE]
        questions = (
            app_question(self.kms_auth, boot),
            self._genesis_question(boot.app_id),
            *(self._workload_question(boot, variant) for variant in variants),
        )
        reading = self._reader.read(questions)
        decision = self._decision(reading.answers, reading.block, boot)
        if decision is None:
            raise ChainUnavailableError("UpgradeOperator, KmsAuth: they do not answer as such")
        # A denial is good from any endpoint of the chain, as soon as it has it.
        newer = (self._decision(one.answers, one.block, boot) for one in reading.newer)
        decision = next((later for later in newer if isinstance(later, Denied)), decision)
        return WorkloadAnswer(decision, self._genesis_in(reading.answers[1]))

    def _decision(self, answers: Sequence[Answer], block: BlockRef, boot: BootInfo) -> Decision | None:
        first, _, *of_operator = answers
        by_kms_auth = app_decision(first, block, boot)
        by_operator = [_operator_decision(answer, block, boot) for answer in of_operator]
        if by_kms_auth is None or None in by_operator:
            return None
        if isinstance(by_kms_auth, Denied):
            return by_kms_auth
        granted = next((each for each in by_operator if isinstance(each, Granted)), None)
        return granted or by_operator[0]

    def _workload_question(self, boot: BootInfo, registers: tuple[bytes, ...]) -> Call:
        app = parse_address("0x" + boot.app_id.hex(), what="app")
        workload = (self.kms_auth, app, bytes(boot.compose_hash), bytes(boot.os_image_hash), registers)
        return Call(self.operator, encode_call("UpgradeOperator", "isAllowed", workload))

    def _genesis_question(self, app_id: AppId) -> Call:
        app = parse_address("0x" + app_id.hex(), what="app")
        return Call(self.operator, encode_call("UpgradeOperator", "genesisOf", app))

    def _genesis_in(self, answer: Answer) -> Genesis | None:
        decoded = _decoded(["bytes32", "bytes32", "uint64", "uint48"], answer)
        if decoded is None:
            raise ChainUnavailableError("UpgradeOperator: genesis: it does not answer as one")
        fingerprint, evidence, *_ = decoded
        return Genesis(Digest32(fingerprint), Digest32(evidence)) if any(fingerprint) else None


def _operator_decision(answer: Answer, block: BlockRef, boot: BootInfo) -> Decision | None:
    decoded = _decoded(["bool", "bytes"], answer)
    if decoded is None:
        return None
    is_allowed, reason = decoded
    seen = {
        Rule.COMPOSE_HASH: boot.compose_hash.hex(),
        Rule.OS_IMAGE: boot.os_image_hash.hex(),
        Rule.APP_FROZEN: "0x" + boot.app_id.hex(),
        Rule.APP_REGISTERED: "0x" + boot.app_id.hex(),
        Rule.NOT_GOVERNED: "0x" + boot.app_id.hex(),
    }
    return decide(is_allowed, printable(reason.decode("utf-8", "replace")), block, seen)


def _decoded(types: list[str], answer: Answer) -> tuple[Any, ...] | None:
    if isinstance(answer, Reverted):
        return None
    try:
        return decode(types, answer.data)
    except (DecodingError, OverflowError):  # As in `kms_auth`: a length that no memory could hold.
        return None
