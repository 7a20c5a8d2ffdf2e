"""`ape run hand_over`: offer a KmsAuth or an app of yours to an UpgradeOperator, whose owner then adopts it.

    ape run hand_over --network ethereum:local:foundry --account ACCOUNT --contract 0x.. --operator 0x..
    dstack govern adopt 0x..                                  (the owner of the operator)

Until it is adopted you still own it, and can offer it to somebody else. After that every grant takes 48 hours.
"""

from __future__ import annotations

import json
from typing import Any

import click
from ape import Contract
from ape.cli import ConnectedProviderCommand, account_option
from eth_typing import ChecksumAddress

from dstack.chain.artifacts import load_artifact
from dstack.chain.client import parse_address
from dstack.errors import RefusedError


@click.command(cls=ConnectedProviderCommand)
@account_option()
@click.option("--contract", required=True, help="The proxy of the KmsAuth or app that you own.")
@click.option("--operator", required=True, help="UpgradeOperator of this release.")
def cli(account: Any, contract: str, operator: str) -> None:
    """Offer the ownership of CONTRACT to OPERATOR."""
    offered = offer(account, parse_address(contract, what="--contract"), parse_address(operator, what="--operator"))
    click.echo(json.dumps({"contract": offered, "pending_owner": operator}))


def offer(account: Any, contract: ChecksumAddress, operator: ChecksumAddress) -> str:
    """Name *operator* as the next owner of *contract*.

    Raises:
        RefusedError: The account does not own it, or *operator* is no UpgradeOperator of this release.
    """
    if not load_artifact("UpgradeOperator").is_code(bytes(account.provider.get_code(operator))):
        raise RefusedError(f"--operator: the code at {operator} is not the UpgradeOperator of this release")
    governed = Contract(contract, abi=load_artifact("KmsAuth").abi)
    if governed.owner() != account.address:
        raise RefusedError(f"--contract: its owner is {governed.owner()}, not {account.address}")
    governed.transferOwnership(operator, sender=account)
    return contract
