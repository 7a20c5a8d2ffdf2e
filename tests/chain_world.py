"""A local chain with the contracts on it, and who may do what there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from web3 import Web3
from web3.contract import Contract
from web3.logs import DISCARD
from web3.types import TxReceipt

from dstack.chain.bindings import contract_at, encode_call
from dstack.chain.client import ChainClient
from dstack.chain.deploy import AppPolicy, Deployment, deploy_app, deploy_contract, deploy_system
from dstack.chain.kms_auth import KmsAuthReader
from dstack.chain.operator import Action, Content, Kind, Proposal, State, execute_call, proposal_in, propose_call
from dstack.chain.operator_reader import OperatorReader
from dstack.chain.proposing import current_content
from dstack.chain.tx import Call, send
from dstack.devnet.anvil import Anvil
from dstack.policy import BootInfo
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash

DELAY = timedelta(hours=48)
WINDOW = timedelta(days=14)

COMPOSE = ComposeHash(b"\xc0" * 32)
DEVICE = DeviceId(b"\xde" * 32)
OS_IMAGE = OsImageHash(b"\x05" * 32)
KMS_MR = Digest32(b"\x3a" * 32)
URI = "ipfs://the-full-content"


@dataclass(frozen=True)
class ChainWorld:
    """UpgradeOperator owns `kms_auth` and `app`; the *own* pair belongs to `owner` itself, to test them alone."""

    chain: Anvil
    w3: Web3
    owner: LocalAccount
    guardian: LocalAccount
    stranger: LocalAccount
    deployment: Deployment
    app_id: AppId
    operator: Contract
    kms_auth: Contract
    app_auth: Contract
    own_kms_auth: Contract
    own_app_auth: Contract

    def send(self, sender: LocalAccount, contract: Contract, function: str, *arguments: Any) -> TxReceipt:
        """Have *sender* call *function*; a refusal comes back as RefusedError."""
        data = Web3.to_bytes(hexstr=contract.encode_abi(function, args=arguments))
        return send(self.w3, sender, Call(contract.address, data))

    def call(self, call: Call, sender: LocalAccount | None = None) -> TxReceipt:
        """Send a prepared call; by the owner unless somebody else is named."""
        return send(self.w3, sender or self.owner, call)

    def content(self, *actions: Action, uri: str = URI, rollback: Sequence[Action] = ()) -> Content:
        """Content of a proposal as the chain would take it now."""
        return current_content(self.w3, self.deployment.operator, actions, uri, rollback=rollback)

    def propose(self, *actions: Action, uri: str = URI, rollback: Sequence[Action] = ()) -> Proposal:
        """The owner announces *actions*."""
        content = self.content(*actions, uri=uri, rollback=rollback)
        receipt = self.call(propose_call(self.deployment.operator, content))
        return proposal_in(receipt, chain_id=self.deployment.chain_id, operator=self.deployment.operator)

    def grant(self, *actions: Action) -> Proposal:
        """The owner announces *actions*, their delay passes, somebody executes."""
        proposal = self.propose(*actions)
        self.warp_to(int(proposal.ready_at.timestamp()))
        self.call(execute_call(proposal), self.stranger)
        return proposal

    def warp(self, duration: timedelta) -> None:
        """Let time pass."""
        self.chain.warp(int(duration.total_seconds()))

    def warp_to(self, seconds: int) -> None:
        """Mine a block at exactly this time."""
        self.chain.warp(seconds - self.w3.eth.get_block("latest")["timestamp"])

    def on_app(self, kind: Kind, value: bytes) -> Action:
        """An action on the app that UpgradeOperator owns."""
        return Action.of(kind, self.app_auth.address, value)

    def on_kms(self, kind: Kind, value: bytes) -> Action:
        """An action on the KmsAuth that UpgradeOperator owns."""
        return Action.of(kind, self.kms_auth.address, value)

    def reader(self, contract: Contract | None = None) -> KmsAuthReader:
        """Asks KmsAuth at the newest block."""
        client = ChainClient(self.chain.rpc_url, block_tag="latest")
        return KmsAuthReader(client, (contract or self.kms_auth).address)

    def boot(self, **changes: Any) -> BootInfo:
        """The boot info of the app's machine, with *changes*."""
        usual = {
            "app_id": self.app_id,
            "compose_hash": COMPOSE,
            "instance_id": InstanceId(b"\x1d" * 20),
            "device_id": DEVICE,
            "mr_aggregated": KMS_MR,
            "mr_system": Digest32(b"\x5e" * 32),
            "os_image_hash": OS_IMAGE,
            "tcb_status": "UpToDate",
        }
        return BootInfo(**(usual | changes))

    def place_code(self, code: bytes) -> ChecksumAddress:
        """A contract with this runtime code."""
        # PUSH2 size, DUP1, PUSH1 offset 12, PUSH0, CODECOPY, PUSH0, RETURN, padded to the offset with STOP
        creation = (b"\x61" + len(code).to_bytes(2, "big") + bytes.fromhex("80600c5f395ff3")).ljust(12, b"\0") + code
        address = self.call(Call(None, creation))["contractAddress"]
        assert address is not None
        return address


def chain_world(chain: Anvil) -> ChainWorld:
    """Deploy everything."""
    w3 = chain.web3
    owner, guardian, stranger = (chain.funded_account() for _ in range(3))
    deployment = deploy_system(w3, stranger, owner=owner.address, guardian=guardian.address)
    app_id = deploy_app(w3, stranger, deployment, AppPolicy())
    app_address = Web3.to_checksum_address(app_id)
    return ChainWorld(
        chain,
        w3,
        owner,
        guardian,
        stranger,
        deployment,
        app_id,
        operator=contract_at(w3, "UpgradeOperator", deployment.operator),
        kms_auth=contract_at(w3, "KmsAuth", deployment.kms_auth),
        app_auth=contract_at(w3, "AppAuth", app_address),
        own_kms_auth=_proxy(w3, owner, "KmsAuth", "initialize", owner.address, deployment.app_implementation),
        own_app_auth=_proxy(w3, owner, "AppAuth", APP_INITIALIZE, owner.address, False, True, False, DEVICE, COMPOSE),
    )


APP_INITIALIZE = "initialize(address,bool,bool,bool,bytes32,bytes32)"


def _proxy(w3: Web3, deployer: LocalAccount, name: str, function: str, *arguments: Any) -> Contract:
    implementation = deploy_contract(w3, deployer, name)
    set_up = encode_call(name, function, *arguments)
    return contract_at(w3, name, deploy_contract(w3, deployer, "ERC1967Proxy", implementation, set_up))


def events_of(contract: Contract, receipt: TxReceipt) -> list[tuple[str, dict[str, Any]]]:
    """The events of *contract* in a receipt, in order: name and arguments."""
    decoded = [
        (log["logIndex"], log["event"], dict(log["args"]))
        for event in contract.events
        for log in event().process_receipt(receipt, errors=DISCARD)
        if log["address"] == contract.address
    ]
    return [(name, arguments) for _, name, arguments in sorted(decoded, key=lambda entry: entry[0])]


@contextmanager
def restored(chain: Anvil) -> Iterator[None]:
    """Undo on the chain whatever happens inside."""
    snapshot = chain.snapshot()
    try:
        yield
    finally:
        chain.revert(snapshot)


def operator_reader(world: ChainWorld) -> OperatorReader:
    """Asks UpgradeOperator at the newest block."""
    return OperatorReader(ChainClient(world.chain.rpc_url, block_tag="latest"), world.deployment.operator)


def state_of(world: ChainWorld, proposal: Proposal) -> State:
    """Where it stands now."""
    return operator_reader(world).state(proposal.id)
