"""The owners' side of the demo: a 2-of-3 Safe, its proposals, and the 48 hours in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.types import RPCEndpoint, TxReceipt

from dstack.chain.action_data import Genesis
from dstack.chain.deploy import AppPolicy, Deployment, deploy_app, deploy_system
from dstack.chain.operator import Action, Kind, Proposal, deny_call, execute_call, proposal_in, propose_call
from dstack.chain.proposing import current_content
from dstack.chain.safe import ARTIFACTS, Safe, deploy_safe, sign_safe_transaction
from dstack.chain.tx import Call, send
from dstack.devnet.anvil import Anvil
from dstack.devnet.programs import interrupts_later
from dstack.devnet.transcript import demand
from dstack.devnet.world import World
from dstack.errors import RefusedError
from dstack.measurement.identities import device_id
from dstack.policy.timelock import MIN_DELAY
from dstack.values import AppId, ComposeHash, Digest32

# Safe's compiled contracts are fetched into the checkout by `make setup`.
_CHECKOUT = Path(__file__).resolve().parent.parent.parent
_OWNERS = 3
_THRESHOLD = 2


@dataclass(frozen=True, slots=True)
class Governance:
    """Contracts on a local chain, and the keys of those who govern them.

    Attributes:
        chain: The local chain.
        deployment: Where the contracts are.
        safe: Owner of UpgradeOperator.
        owners: Three keys; two must sign.
        anybody: A key that owns nothing: pays, executes.
        guardian: May deny and cancel, nothing else.
        app: The app that gets its keys from a KMS.
        handover_app: The app that hands over a secure file.
    """

    chain: Anvil
    deployment: Deployment
    safe: Safe
    owners: tuple[LocalAccount, ...]
    anybody: LocalAccount
    guardian: LocalAccount
    app: AppId
    handover_app: AppId

    @classmethod
    def deploy(cls, world: World, cleanup: ExitStack) -> Governance:
        """Step 1; *cleanup* ends the chain."""
        say = world.say
        with interrupts_later():
            chain = cleanup.enter_context(Anvil.start())
        owners = tuple(chain.funded_account() for _ in range(_OWNERS))
        anybody, guardian = chain.funded_account(), chain.funded_account()
        w3 = chain.web3
        say.did(f"anvil, a local chain, at {chain.rpc_url}")
        addresses = [owner.address for owner in owners]
        safe = deploy_safe(w3, anybody, addresses, threshold=_THRESHOLD, artifacts=_CHECKOUT / ARTIFACTS)
        deployment = deploy_system(w3, anybody, owner=safe.address, guardian=guardian.address)
        device = device_id(world.pki.platform.ppid)
        app, handover_app = (deploy_app(w3, anybody, deployment, AppPolicy(device_id=device)) for _ in range(2))
        self = cls(chain, deployment, safe, owners, anybody, guardian, app, handover_app)
        self._say_addresses(world)

        image = Action.of(Kind.OS_IMAGE, deployment.kms_auth, world.image.os_image_hash)
        pending = self.propose([image], "the OS image", world)
        self._wait(world)
        self.execute(pending)
        say.did(f"OS image {world.image.os_image_hash.hex()} is allowed, 48 hours after its proposal")
        return self

    @property
    def rpc_url(self) -> str:
        """The chain's endpoint."""
        return self.chain.rpc_url

    @property
    def kms_auth(self) -> str:
        """The contract that everybody asks."""
        return self.deployment.kms_auth

    def propose(self, actions: Sequence[Action], uri: str, world: World) -> Proposal:
        """Have two owners sign a proposal, and send it."""
        content = current_content(self.chain.web3, self.deployment.operator, actions, uri)
        receipt = self._by_safe(propose_call(self.deployment.operator, content))
        proposal = proposal_in(receipt, chain_id=self.deployment.chain_id, operator=self.deployment.operator)
        world.say.did(f"two owners signed proposal {proposal.id.hex()[:16]}...: {uri}; ready at {proposal.ready_at}")
        return proposal

    def execute(self, proposal: Proposal) -> None:
        """Put a Ready proposal in force; anybody may."""
        send(self.chain.web3, self.anybody, execute_call(proposal))

    def allow_kms(self, mr_aggregated: Digest32, world: World) -> None:
        """Allow one KMS, on the world's machine."""
        device = device_id(world.pki.platform.ppid)
        actions = [
            Action.of(Kind.KMS_AGGREGATED_MR, self.kms_auth, mr_aggregated),
            Action.of(Kind.KMS_DEVICE, self.kms_auth, device),
        ]
        pending = self.propose(actions, "the KMS", world)
        self._wait(world)
        self.execute(pending)
        world.say.did("the KMS is allowed")

    def allow_apps(self, apps: Mapping[AppId, ComposeHash], world: World) -> None:
        """Step 4: propose, see that it cannot be executed at once, wait, execute."""
        actions = [_compose_action(app, allowed) for app, allowed in apps.items()]
        pending = self.propose(actions, "the apps' compose hashes", world)
        self._must_be_too_early(pending, "execution right after the proposal", world)
        self.chain.warp(int(MIN_DELAY.total_seconds()) - 60)
        self._must_be_too_early(pending, "execution 47 hours and 59 minutes later", world)
        self.chain.warp(60)
        self.execute(pending)
        world.say.proved("after 48 hours an account that owns nothing executed it: the apps are allowed")

    def propose_app(self, app: AppId, compose_hash: ComposeHash, world: World) -> Proposal:
        """Propose one compose hash, and leave it waiting."""
        return self.propose([_compose_action(app, compose_hash)], "version 2 of the handover app", world)

    def propose_genesis(self, app: AppId, genesis: Genesis, world: World) -> Proposal:
        """Propose to record where the custody of an app's secure file begins, and leave it waiting."""
        action = Action(Kind.GENESIS, Web3.to_checksum_address(app), genesis.encode())
        return self.propose([action], "the genesis of the secure file", world)

    def execute_when_ready(self, proposal: Proposal, world: World) -> None:
        """Wait and execute."""
        self._wait(world)
        self.execute(proposal)
        world.say.did("48 hours later the proposal was executed")

    def deny_compose_hash(self, app: AppId, compose_hash: ComposeHash, world: World) -> None:
        """The guardian takes a grant back; that needs no waiting."""
        denial = deny_call(self.deployment.operator, [_compose_action(app, compose_hash)])
        receipt = send(self.chain.web3, self.guardian, denial)
        world.say.did(f"the guardian denied the app's compose hash, effective in block {receipt['blockNumber']}")

    def keep_transactions(self, world: World) -> None:
        """Put all transactions of the chain with their receipts into the results."""
        found: list[object] = []
        for number in range(self.chain.web3.eth.block_number + 1):
            for transaction in self._ask("eth_getBlockByNumber", hex(number), True)["transactions"]:
                receipt = self._ask("eth_getTransactionReceipt", transaction["hash"])
                found.append({"transaction": transaction, "receipt": receipt})
        world.say.keep("chain/transactions.json", found)

    def _ask(self, method: str, *parameters: object) -> Any:
        return self.chain.web3.provider.make_request(RPCEndpoint(method), list(parameters))["result"]

    def _by_safe(self, call: Call) -> TxReceipt:
        transaction = self.safe.transaction(call)
        signatures = [sign_safe_transaction(owner, transaction) for owner in self.owners[:_THRESHOLD]]
        return self.safe.execute(self.anybody, transaction, signatures)

    def _must_be_too_early(self, proposal: Proposal, what: str, world: World) -> None:
        try:
            self.execute(proposal)
        except RefusedError as exc:
            demand("want it Ready, it is Waiting" in str(exc), f"want a refusal because it waits, got: {exc}")
            world.say.refused(what, by="UpgradeOperator", rule="UnexpectedState", reason=str(exc))
            return
        demand(False, f"{what} succeeded")

    def _wait(self, world: World) -> None:
        self.chain.warp(int(MIN_DELAY.total_seconds()))
        world.say.did("... the chain's clock advances by 48 hours ...")

    def _say_addresses(self, world: World) -> None:
        addresses: dict[str, object] = {
            "chain_id": self.deployment.chain_id,
            "safe": self.safe.address,
            "safe_owners": [owner.address for owner in self.owners],
            "guardian": self.guardian.address,
            "upgrade_operator": self.deployment.operator,
            "kms_auth": self.deployment.kms_auth,
            "app_implementation": self.deployment.app_implementation,
            "app": Web3.to_checksum_address(self.app),
            "handover_app": Web3.to_checksum_address(self.handover_app),
        }
        world.say.keep("chain/addresses.json", addresses)
        days = MIN_DELAY / timedelta(hours=1)
        world.say.did(f"Safe {self.safe.address}: 2 of 3 owners must sign")
        world.say.did(f"UpgradeOperator {self.deployment.operator}: owned by the Safe, delay {days:.0f} hours")
        world.say.did(f"KmsAuth {self.kms_auth}: owned by UpgradeOperator; allows nothing yet")
        world.say.did(f"AppAuth {addresses['app']} and {addresses['handover_app']}: owned by UpgradeOperator")


def _compose_action(app: AppId, compose_hash: ComposeHash) -> Action:
    return Action.of(Kind.COMPOSE_HASH, Web3.to_checksum_address(app), compose_hash)
