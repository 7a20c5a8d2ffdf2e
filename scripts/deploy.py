"""`ape run deploy`: put the contracts on a chain, from the committed artifacts, paid by an account of ape's.

    ape run deploy --network ethereum:local:foundry --account ACCOUNT --owner 0x.. --guardian 0x..

Prints one JSON object with the addresses. The account keeps no power: the operator owns everything from the start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from ape.cli import ConnectedProviderCommand, account_option
from ape.contracts import ContractContainer
from ethpm_types import ContractType

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import encode_call
from dstack.chain.client import parse_address

SECONDS_AN_HOUR = 3600


@click.command(cls=ConnectedProviderCommand)
@account_option()
@click.option("--owner", required=True, help="Account that proposes, cancels and denies: a key, a Safe, a Governor.")
@click.option(
    "--guardian", required=True, help="Account that may cancel and deny too; the owner where there is no other."
)
@click.option("--delay-hours", type=click.IntRange(min=48), default=48, show_default=True)
@click.option(
    "--upgrade-delay-hours",
    type=click.IntRange(min=48),
    default=168,
    show_default=True,
    help="Of changes of the contracts' code; not below --delay-hours.",
)
def cli(account: Any, owner: str, guardian: str, delay_hours: int, upgrade_delay_hours: int) -> None:
    """Deploy UpgradeOperator, and KmsAuth with UpgradeOperator as its owner."""
    accounts = parse_address(owner, what="--owner"), parse_address(guardian, what="--guardian")
    delays = tuple(hours * SECONDS_AN_HOUR for hours in (delay_hours, delay_hours, upgrade_delay_hours))
    click.echo(json.dumps(deploy_all(account, accounts, delays)))


def deploy_all(account: Any, accounts: Sequence[str], delays: Sequence[int]) -> dict[str, str]:
    """Deploy everything, paid by *account*; owner and guardian are *accounts*, *delays* are in seconds by class."""
    operator = deploy(account, "UpgradeOperator", *accounts, tuple(delays))
    app_implementation = deploy(account, "AppAuth")
    kms_implementation = deploy(account, "KmsAuth")
    set_up = encode_call("KmsAuth", "initialize", operator.address, app_implementation.address)
    kms_auth = deploy(account, "ERC1967Proxy", kms_implementation, set_up)
    return {
        "operator": operator.address,
        "kms_auth": kms_auth.address,
        "app_implementation": app_implementation.address,
    }


def deploy(account: Any, name: str, *arguments: Any) -> Any:
    """Deploy the committed artifact *name*."""
    artifact = load_artifact(name)
    contract_type = ContractType.model_validate(
        {
            "contractName": name,
            "abi": artifact.abi,
            "deploymentBytecode": {"bytecode": "0x" + artifact.bytecode.hex()},
        }
    )
    return account.deploy(ContractContainer(contract_type), *arguments)
