"""The governed contracts as an opponent sees them: raw calls, exact times, refusals with their values.

Numbers and encodings here are written from the interfaces, not taken from our bindings, so that a slip there shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple

from eth_abi.abi import decode, encode
from eth_typing import ChecksumAddress
from eth_utils.abi import abi_to_signature, collapse_if_tuple
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import ContractLogicError
from web3.types import RPCEndpoint, TxReceipt

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import contract_at, encode_call, encode_creation
from dstack.devnet.anvil import Anvil
from tests.chain_world import APP_INITIALIZE, events_of

HOUR = 3600
DAY = 24 * HOUR
MIN_DELAY = 48 * HOUR
WINDOW = 14 * DAY
FREEZE = 7 * DAY
COOL_DOWN = 7 * DAY
FORCED_DELAY = 7 * DAY
YEAR = 365 * DAY
MAX_TOLERATION = 90 * DAY

COMPOSE = b"\xc0" * 32
DEVICE = b"\xde" * 32
IMAGE = b"\x05" * 32
KMS_MR = b"\x3a" * 32
ON = (1).to_bytes(32, "big")
ZERO_ADDRESS = Web3.to_checksum_address("0x" + "00" * 20)
URI = "ipfs://the-full-content"
GAS = 10_000_000

REGISTERS_TYPE = "(bytes,bytes,bytes,bytes,bytes)"
VERSION_TYPE = f"(uint64,bytes32,bytes32[],{REGISTERS_TYPE}[],uint64,uint64,bool)"
CONTENT_TYPE = "((uint8,address,bytes)[],(uint8,address,bytes)[],bytes32[],string)"
NO_REGISTERS = (b"", b"", b"", b"", b"")

KMS_INFO_TYPE = "(bytes,bytes,bytes,bytes)"
KMS_INFO = (b"\x02" * 33, b"\x04" * 65, b"a quote", b"its event log")

Refusal = tuple[Any, ...]


class Kind(IntEnum):
    """`IUpgradeOperator.Kind`."""

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


# The kinds whose target is the operator itself.
OWN = (Kind.GUARDIAN, Kind.FORCED_GUARDIAN, Kind.OWNER, Kind.DELAY)


class State(IntEnum):
    """`IUpgradeOperator.State`."""

    UNSET = 0
    WAITING = 1
    READY = 2
    EXECUTED = 3
    CANCELLED = 4
    EXPIRED = 5
    ROLLED_BACK = 6


class DelayClass(IntEnum):
    """`IUpgradeOperator.DelayClass`."""

    POLICY = 0
    ROLES = 1
    UPGRADES = 2


class Action(NamedTuple):
    """`IUpgradeOperator.Action`."""

    kind: int
    target: str
    data: bytes


class Content(NamedTuple):
    """`IUpgradeOperator.Content`."""

    actions: list[Action]
    rollback: list[Action]
    code_hashes: list[bytes]
    uri: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What was announced, and when it may be executed."""

    id: bytes
    content: Content
    proposed_at: int
    ready_at: int

    @property
    def expires_at(self) -> int:
        """From then on it cannot be executed."""
        return self.ready_at + WINDOW


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction to be mined together with others."""

    sender: str
    contract: Contract
    function: str
    arguments: tuple[Any, ...] = field(default=())


@dataclass(frozen=True)
class GovernedWorld:
    """UpgradeOperator owns `kms` and `app`, which is registered; nothing is allowed yet."""

    chain: Anvil
    w3: Web3
    owner: ChecksumAddress
    guardian: ChecksumAddress
    stranger: ChecksumAddress
    operator: Contract
    kms: Contract
    app: Contract
    app_implementation: ChecksumAddress
    kms_implementation: ChecksumAddress

    # Time.

    @property
    def now(self) -> int:
        """Time of the newest block."""
        return int(self.w3.eth.get_block("latest")["timestamp"])

    def warp_to(self, at: int) -> None:
        """Mine a block at this second, unless the newest is of it."""
        if at != self.now:
            self.rpc("evm_setNextBlockTimestamp", hex(at))
            self.rpc("evm_mine")

    # Transactions.

    def rpc(self, method: str, *parameters: Any) -> Any:
        """Ask anvil."""
        answer = self.w3.provider.make_request(RPCEndpoint(method), list(parameters))
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def transact(
        self, sender: str, to: str | None, data: bytes, *, at: int | None = None, value: int = 0, gas: int = GAS
    ) -> TxReceipt:
        """Have a transaction mined, in a block at the second *at* or one after the newest; it may have been refused."""
        self.rpc("evm_setNextBlockTimestamp", hex(self.now + 1 if at is None else at))
        transaction = {"from": sender, "data": Web3.to_hex(data), "value": hex(value), "gas": hex(gas)}
        sent = self.rpc("eth_sendTransaction", transaction if to is None else transaction | {"to": to})
        return self._receipt(sent)

    def send(self, sender: str, contract: Contract, function: str, *arguments: Any, at: int | None = None) -> TxReceipt:
        """Call a function that must succeed."""
        data = _data(contract, function, arguments)
        receipt = self.transact(sender, contract.address, data, at=at)
        assert receipt["status"] == 1, self._why(sender, contract.address, data, receipt)
        return receipt

    def refused(
        self, sender: str, contract: Contract, function: str, *arguments: Any, at: int | None = None, value: int = 0
    ) -> Refusal:
        """Call a function that must be refused: name of the error and its values; ("nothing",) for no reason."""
        data = _data(contract, function, arguments)
        receipt = self.transact(sender, contract.address, data, at=at, value=value)
        assert receipt["status"] == 0, f"{function} was not refused"
        assert receipt["logs"] == []
        return self._why(sender, contract.address, data, receipt, value)

    def in_one_block(self, *calls: Sent, at: int | None = None) -> list[int]:
        """Mine all in one block in this order; the status of each."""
        self.rpc("evm_setAutomine", False)
        try:
            hashes = []
            for place, call in enumerate(calls):
                fee = hex((100 - place) * 10**9)
                transaction = {"from": call.sender, "to": call.contract.address, "gas": hex(GAS)}
                transaction |= {"data": Web3.to_hex(_data(call.contract, call.function, call.arguments))}
                transaction |= {"maxFeePerGas": fee, "maxPriorityFeePerGas": fee}
                hashes.append(self.rpc("eth_sendTransaction", transaction))
            self.rpc("evm_setNextBlockTimestamp", hex(self.now + 1 if at is None else at))
            self.rpc("evm_mine")
        finally:
            self.rpc("evm_setAutomine", True)
        receipts = [self._receipt(sent) for sent in hashes]
        assert len({receipt["blockHash"] for receipt in receipts}) == 1
        assert [receipt["transactionIndex"] for receipt in receipts] == list(range(len(calls)))
        return [receipt["status"] for receipt in receipts]

    def deploy(self, creation: bytes) -> ChecksumAddress:
        """A contract from its creation code."""
        address = self.transact(self.stranger, None, creation)["contractAddress"]
        assert address is not None
        return address

    def deploy_ours(self, name: str, *arguments: Any) -> Contract:
        """One of our contracts."""
        return contract_at(self.w3, name, self.deploy(encode_creation(name, *arguments)))

    def proxy(self, name: str, function: str, *arguments: Any) -> Contract:
        """A fresh proxy of one of our contracts, initialised."""
        implementation = self.app_implementation if name == "AppAuth" else self.kms_implementation
        set_up = encode_call(name, function, *arguments)
        return contract_at(self.w3, name, self.deploy(encode_creation("ERC1967Proxy", implementation, set_up)))

    def own_app(self, owner: str, compose_hash: bytes = bytes(32)) -> Contract:
        """An app of somebody else, which any device may run."""
        return self.proxy("AppAuth", APP_INITIALIZE, owner, False, False, True, bytes(32), compose_hash)

    def _receipt(self, sent: str) -> TxReceipt:
        return self.w3.eth.wait_for_transaction_receipt(HexBytes(sent), timeout=10, poll_latency=0.002)

    def _why(self, sender: str, to: str, data: bytes, receipt: TxReceipt, value: int = 0) -> Refusal:
        transaction = {"from": sender, "to": to, "data": Web3.to_hex(data), "value": hex(value), "gas": hex(GAS)}
        try:
            self.w3.eth.call(transaction, receipt["blockNumber"])  # type: ignore[arg-type]
        except ContractLogicError as exc:
            return decoded_error(exc)
        raise AssertionError("refused in a block, and not when asked again")

    # Actions.

    def on_app(self, kind: Kind, data: bytes) -> Action:
        """An action on the app."""
        return Action(kind, self.app.address, data)

    def on_kms(self, kind: Kind, data: bytes) -> Action:
        """An action on KmsAuth."""
        return Action(kind, self.kms.address, data)

    def on_self(self, kind: Kind, data: bytes) -> Action:
        """An action on the operator itself."""
        return Action(kind, self.operator.address, data)

    def compose(self, compose_hash: bytes = COMPOSE) -> Action:
        """Allow or deny a compose hash."""
        return self.on_app(Kind.COMPOSE_HASH, compose_hash)

    def image(self, image: bytes = IMAGE) -> Action:
        """Allow or deny an OS image."""
        return self.on_kms(Kind.OS_IMAGE, image)

    def delay(self, delay_class: DelayClass, seconds: int) -> Action:
        """Change a delay."""
        return self.on_self(Kind.DELAY, words(delay_class, seconds))

    def version(self, number: int, **changes: Any) -> Action:
        """Allow a version."""
        return self.on_app(Kind.VERSION, version_data(number, **changes))

    def sunset(self, number: int, time: int) -> Action:
        """Have a version end later or, denied, earlier."""
        return self.on_app(Kind.SUNSET, words(number, time))

    def kms_info(self) -> Action:
        """Publish facts about the running KMS."""
        return self.on_kms(Kind.KMS_INFO, encode([KMS_INFO_TYPE], [KMS_INFO]))

    def key_epoch(self, number: int, window: int = DAY) -> Action:
        """Begin an epoch of keys; the one before is served on for *window* seconds."""
        return self.on_kms(Kind.KEY_EPOCH, words(number, window))

    def genesis(self, fingerprint: bytes = b"\xf1" * 32, evidence: bytes = b"\xe1" * 32) -> Action:
        """Record where the custody of the app's secure file begins."""
        return self.on_app(Kind.GENESIS, fingerprint + evidence)

    def force_guardian(self, account: str) -> Action:
        """Name a guardian so that the guardian cannot cancel it."""
        return self.on_self(Kind.FORCED_GUARDIAN, word(account))

    def freeze(self, kind: Kind = Kind.APP, app: str | None = None) -> Action:
        """Freeze (denied) or unfreeze (granted) the app; or renew its freeze."""
        return self.on_kms(kind, word(app or self.app.address))

    # Proposals.

    def content(self, actions: Iterable[Action], rollback: Iterable[Action] = (), uri: str = URI) -> Content:
        """Content as it must be proposed now."""
        listed, back = list(actions), list(rollback)
        hashes = self.operator.functions.codeHashesOf(listed, back).call()
        return Content(listed, back, [bytes(each) for each in hashes], uri)

    def propose(
        self, *actions: Action, rollback: Sequence[Action] = (), by: str | None = None, at: int | None = None
    ) -> Proposal:
        """The owner announces."""
        content = self.content(actions, rollback)
        receipt = self.send(by or self.owner, self.operator, "propose", content, at=at)
        ((_, event),) = events_of(self.operator, receipt)
        proposed_at = self.w3.eth.get_block(receipt["blockNumber"])["timestamp"]
        return Proposal(bytes(event["id"]), content, int(proposed_at), int(event["readyAt"]))

    def execute(self, proposal: Proposal, *, by: str | None = None, at: int | None = None) -> TxReceipt:
        """Somebody puts it in force."""
        return self.send(by or self.stranger, self.operator, "execute", proposal.id, proposal.content, at=at)

    def execution_refused(self, proposal: Proposal, *, by: str | None = None, at: int | None = None) -> Refusal:
        """Why somebody cannot."""
        return self.refused(by or self.stranger, self.operator, "execute", proposal.id, proposal.content, at=at)

    def grant(self, *actions: Action, rollback: Sequence[Action] = ()) -> Proposal:
        """The whole grant path, at the first possible second."""
        proposal = self.propose(*actions, rollback=rollback)
        self.execute(proposal, at=proposal.ready_at)
        return proposal

    def deny(self, *actions: Action, by: str | None = None, at: int | None = None) -> TxReceipt:
        """The guardian takes back."""
        return self.send(by or self.guardian, self.operator, "deny", list(actions), at=at)

    def state(self, proposal: Proposal) -> State:
        """Where it stands at the newest block."""
        return State(self.operator.functions.stateOf(proposal.id).call())

    # Questions.

    def boot(self, **changes: Any) -> tuple[Any, ...]:
        """Boot info of the app's machine, in the order of the ABI."""
        usual = {
            "app_id": self.app.address,
            "compose_hash": COMPOSE,
            "instance_id": b"\x1d" * 20,
            "device_id": DEVICE,
            "mr_aggregated": KMS_MR,
            "mr_system": b"\x5e" * 32,
            "os_image_hash": IMAGE,
            "tcb_status": "UpToDate",
            "advisory_ids": [],
        }
        assert changes.keys() <= usual.keys()
        return tuple((usual | changes).values())

    def asked(self, **changes: Any) -> tuple[bool, str]:
        """KmsAuth's answer about a machine of the app."""
        allowed, reason = self.kms.functions.isAppAllowed(self.boot(**changes)).call()
        return bool(allowed), str(reason)

    def workload(
        self,
        compose_hash: bytes = COMPOSE,
        image: bytes = IMAGE,
        *,
        app: str | None = None,
        registers: tuple[bytes, ...] = NO_REGISTERS,
    ) -> tuple[Any, ...]:
        """`IUpgradeOperator.Workload`."""
        return self.kms.address, app or self.app.address, compose_hash, image, registers

    def allowed_at(self, at: int, *arguments: Any, **changes: Any) -> tuple[bool, str]:
        """The operator's answer about a workload at a time."""
        question = self.operator.functions.isAllowedAt(self.workload(*arguments, **changes), at)
        allowed, reason = question.call()
        return bool(allowed), str(reason)


GRANTED = (True, "")


def word(value: int | str) -> bytes:
    """One ABI word: a number, or an address."""
    return (int(value, 16) if isinstance(value, str) else value).to_bytes(32, "big")


def words(*values: int | str) -> bytes:
    """Several."""
    return b"".join(map(word, values))


def registers(fill: int, rtmr3: bytes = b"") -> tuple[bytes, ...]:
    """One set of registers."""
    return (*(bytes([fill + place]) * 48 for place in range(4)), rtmr3)


def version_tuple(
    number: int,
    *,
    compose_hash: bytes = COMPOSE,
    images: Sequence[bytes] = (IMAGE,),
    register_sets: Sequence[tuple[bytes, ...]] = (),
    supersedes: int = 0,
    sunset: int = 0,
    is_rollback: bool = False,
) -> tuple[Any, ...]:
    """`IAppAuthPolicy.Version`."""
    return number, compose_hash, list(images), list(register_sets), supersedes, sunset, is_rollback


def version_data(number: int, **changes: Any) -> bytes:
    """The data of an action on a version."""
    return encode([VERSION_TYPE], [version_tuple(number, **changes)])


def proposal_id(chain_id: int, operator: str, nonce: int, content: Content) -> bytes:
    """The id that content has by the words of the interface."""
    types = ["uint256", "address", "uint256", CONTENT_TYPE]
    return keccak(encode(types, [chain_id, operator, nonce, tuple(content)]))


def decoded_error(error: ContractLogicError) -> Refusal:
    """Name and values of the error that a contract refused with."""
    data = HexBytes(error.data) if isinstance(error.data, str) and error.data.startswith("0x") else b""
    return decoded_refusal(bytes(data))


def decoded_refusal(data: bytes) -> Refusal:
    """The same, of the data itself."""
    if not data:
        return ("nothing",)
    name, types = _errors()[data[:4]]
    values = decode(types, data[4:])
    return (name, *(_shown(kind, value) for kind, value in zip(types, values, strict=True)))


def _shown(kind: str, value: Any) -> Any:
    return Web3.to_checksum_address(value) if kind == "address" else value


@cache
def _errors() -> dict[bytes, tuple[str, list[str]]]:
    known = {keccak(text="Error(string)")[:4]: ("Error", ["string"])}
    known[keccak(text="Panic(uint256)")[:4]] = ("Panic", ["uint256"])
    for artifact in ("KmsAuth", "AppAuth", "UpgradeOperator", "ERC1967Proxy"):
        for entry in load_artifact(artifact).abi:
            if entry["type"] == "error":
                types = [collapse_if_tuple(each) for each in entry["inputs"]]
                known[keccak(text=abi_to_signature(entry))[:4]] = (entry["name"], types)  # type: ignore[arg-type]
    return known


def _data(contract: Contract, function: str, arguments: Sequence[Any]) -> bytes:
    return Web3.to_bytes(hexstr=contract.encode_abi(function, args=arguments))


@contextmanager
def governed_chain() -> Iterator[GovernedWorld]:
    """A chain of its own with everything deployed."""
    with Anvil.start() as chain:
        yield governed_world(chain)


def governed_world(chain: Anvil) -> GovernedWorld:
    """Deploy everything; accounts are addresses that anvil lets anybody send from."""
    w3 = chain.web3
    w3.provider.make_request(RPCEndpoint("anvil_autoImpersonateAccount"), [True])
    owner, guardian, stranger = (chain.funded_account().address for _ in range(3))

    def deploy(name: str, *arguments: Any) -> ChecksumAddress:
        sent = w3.eth.send_transaction({"from": stranger, "data": Web3.to_hex(encode_creation(name, *arguments))})
        address = w3.eth.wait_for_transaction_receipt(sent, timeout=10, poll_latency=0.002)["contractAddress"]
        assert address is not None
        return address

    operator = deploy("UpgradeOperator", owner, guardian, (MIN_DELAY,) * 3)
    app_implementation, kms_implementation = deploy("AppAuth"), deploy("KmsAuth")
    kms_set_up = encode_call("KmsAuth", "initialize", operator, app_implementation)
    kms = contract_at(w3, "KmsAuth", deploy("ERC1967Proxy", kms_implementation, kms_set_up))
    made = kms.functions["deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"](
        operator, False, True, False, bytes(32), bytes(32)
    ).transact({"from": stranger})
    receipt = w3.eth.wait_for_transaction_receipt(made, timeout=10, poll_latency=0.002)
    (event,) = (arguments for name, arguments in events_of(kms, receipt) if name == "AppDeployedViaFactory")
    return GovernedWorld(
        chain,
        w3,
        owner,
        guardian,
        stranger,
        operator=contract_at(w3, "UpgradeOperator", operator),
        kms=kms,
        app=contract_at(w3, "AppAuth", Web3.to_checksum_address(event["appId"])),
        app_implementation=app_implementation,
        kms_implementation=kms_implementation,
    )
