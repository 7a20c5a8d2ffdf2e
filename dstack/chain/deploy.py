"""Putting the contracts on a chain, with UpgradeOperator as owner from the first block on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from web3 import Web3
from web3.logs import DISCARD

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import contract_at, encode_call, encode_creation
from dstack.chain.client import parse_address
from dstack.chain.operator import Delays
from dstack.chain.tx import Call, send, translated
from dstack.errors import ChainUnavailableError
from dstack.policy.timelock import MIN_DELAY
from dstack.values import AppId, ComposeHash, DeviceId

DEFAULT_DELAYS = Delays(policy=MIN_DELAY, roles=MIN_DELAY, upgrades=timedelta(days=7))
_NOTHING = bytes(32)
_DEPLOY_APP = "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where everything is.

    Attributes:
        operator: UpgradeOperator, owner of `kms_auth`.
        kms_auth: The proxy; everybody asks this one.
        app_implementation: Code of the apps that `kms_auth` makes.
    """

    chain_id: int
    operator: ChecksumAddress
    kms_auth: ChecksumAddress
    app_implementation: ChecksumAddress


@dataclass(frozen=True, slots=True)
class AppPolicy:
    """What a new app allows from its first block on; everything else is granted by proposals."""

    compose_hash: ComposeHash | None = None
    device_id: DeviceId | None = None
    allow_any_device: bool = False
    require_tcb_up_to_date: bool = True
    disable_upgrades: bool = False


def deploy_system(
    w3: Web3, deployer: LocalAccount, *, owner: str, guardian: str, delays: Delays = DEFAULT_DELAYS
) -> Deployment:
    """Deploy UpgradeOperator, AppAuth's code, and KmsAuth behind a proxy that UpgradeOperator owns.

    KmsAuth allows nothing at first, and the deployer keeps no power over anything.

    Args:
        w3: The chain.
        deployer: Pays.
        owner: Account that proposes, cancels and denies: a key, a Safe, a Governor.
        guardian: Account that may cancel and deny too; the owner itself where there is nobody else.
        delays: Between proposal and earliest execution, 48 hours or more.

    Raises:
        ConfigError: *owner* or *guardian* is not an address.
        RefusedError: A contract refuses, for example a delay that is too short.
        ChainUnavailableError: The endpoint does not answer.
    """
    accounts = parse_address(owner, what="owner"), parse_address(guardian, what="guardian")
    operator = deploy_contract(w3, deployer, "UpgradeOperator", *accounts, delays.abi_tuple())
    app_implementation = deploy_contract(w3, deployer, "AppAuth")
    kms_implementation = deploy_contract(w3, deployer, "KmsAuth")
    set_up = encode_call("KmsAuth", "initialize", operator, app_implementation)
    kms_auth = deploy_contract(w3, deployer, "ERC1967Proxy", kms_implementation, set_up)
    with translated():
        return Deployment(w3.eth.chain_id, operator, kms_auth, app_implementation)


def deploy_app(w3: Web3, deployer: LocalAccount, deployment: Deployment, policy: AppPolicy) -> AppId:
    """Have KmsAuth make and register an app that UpgradeOperator owns; its address is the app id.

    Raises:
        RefusedError: A contract refuses.
        ChainUnavailableError: The endpoint does not answer.
    """
    data = encode_call(
        "KmsAuth",
        _DEPLOY_APP,
        deployment.operator,
        policy.disable_upgrades,
        policy.require_tcb_up_to_date,
        policy.allow_any_device,
        policy.device_id or _NOTHING,
        policy.compose_hash or _NOTHING,
    )
    receipt = send(w3, deployer, Call(deployment.kms_auth, data))
    deployed = contract_at(w3, "KmsAuth", deployment.kms_auth).events.AppDeployedViaFactory()
    (event,) = deployed.process_receipt(receipt, errors=DISCARD)
    return AppId.from_hex(event["args"]["appId"])


def deploy_contract(w3: Web3, deployer: LocalAccount, name: str, *arguments: Any) -> ChecksumAddress:
    """Deploy the committed artifact *name* and look whether its code is on the chain.

    Raises:
        RefusedError: The constructor refuses.
        ChainUnavailableError: The endpoint does not answer, or shows other code than was sent.
    """
    receipt = send(w3, deployer, Call(None, encode_creation(name, *arguments)))
    address = receipt["contractAddress"]
    with translated():
        found = address is not None and load_artifact(name).is_code(bytes(w3.eth.get_code(address)))
    if address is None or not found:
        raise ChainUnavailableError(f"{name}: the chain does not show the code that was sent")
    return address
