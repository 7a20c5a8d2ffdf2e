"""`ape run register_app`: make an app that an UpgradeOperator owns, or register one whose contract exists.

    ape run register_app --network ethereum:local:foundry --account ACCOUNT --operator 0x.. --kms-auth 0x..
    ape run register_app --network ethereum:local:foundry --account ACCOUNT --kms-auth 0x.. --app 0x..

Prints one JSON object. The address of its contract is the app id. Nothing may run yet: grants are proposed.
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
from dstack.errors import InputError

NOTHING = bytes(32)


@click.command(cls=ConnectedProviderCommand)
@account_option()
@click.option("--kms-auth", required=True, help="The proxy of KmsAuth.")
@click.option("--operator", help="UpgradeOperator that shall own a new app.")
@click.option("--app", help="Contract of an app that exists.")
def cli(account: Any, kms_auth: str, operator: str | None, app: str | None) -> None:
    """Make and register an app, or register one."""
    if (operator is None) == (app is None):
        raise click.UsageError("want --operator for a new app, or --app for one that exists")
    kms = parse_address(kms_auth, what="--kms-auth")
    if app is not None:
        made = register(account, kms, parse_address(app, what="--app"))
    else:
        made = make(account, kms, parse_address(operator or "", what="--operator"))
    click.echo(json.dumps({"app": made}))


def make(account: Any, kms_auth: ChecksumAddress, operator: ChecksumAddress) -> str:
    """A new app of the code that KmsAuth has for new apps; no hash, no device, an up-to-date TCB."""
    kms = Contract(kms_auth, abi=load_artifact("KmsAuth").abi)
    arguments = (operator, False, True, False, NOTHING, NOTHING)
    receipt = kms.deployAndRegisterApp(*arguments, sender=account)
    (event,) = receipt.events.filter(kms.AppDeployedViaFactory)
    return str(event.appId)


def register(account: Any, kms_auth: ChecksumAddress, app: ChecksumAddress) -> str:
    """Have KmsAuth ask the contract at *app*.

    Raises:
        InputError: There is no contract.
    """
    if not account.provider.get_code(app):
        raise InputError(f"--app: there is no contract at {app}")
    Contract(kms_auth, abi=load_artifact("KmsAuth").abi).registerApp(app, sender=account)
    return app
