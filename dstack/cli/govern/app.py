"""`dstack govern app`: make an app that UpgradeOperator owns."""

from __future__ import annotations

from typing import Any

import click
from web3 import Web3

from dstack.chain.action_text import parse_hash
from dstack.chain.deploy import AppPolicy, deploy_app
from dstack.cli.govern.connection import answer, connect, connection_options, progress
from dstack.cli.govern.keys import key_options, load_key
from dstack.values import DeviceId

_EXAMPLES = """\b
Examples:
  dstack govern app --key-file payer.json
  dstack govern app --device de01... --no-upgrades --key-env PAYER_KEY --json"""


@click.command(name="app", epilog=_EXAMPLES)
@click.option("--device", metavar="HEX", help="The first device it may run on.")
@click.option("--any-device", is_flag=True, help="It may run on every device.")
@click.option("--no-upgrades", is_flag=True, help="The code of its contract can never change.")
@connection_options
@key_options
def command(
    *, device: str | None, any_device: bool, no_upgrades: bool, deployment: str, rpc_url: str, as_json: bool, **key: Any
) -> None:
    """Have KmsAuth make and register an app. Its contract's address is the app id; no compose hash is allowed yet.

    What is given here is in force at once, because an app nobody can run has no keys to lose.
    """
    first = None if device is None else DeviceId(parse_hash(device, what="--device"))
    connection = connect(rpc_url, deployment)
    policy = AppPolicy(device_id=first, allow_any_device=any_device, disable_upgrades=no_upgrades)
    progress("deploying the app's contract")
    app = Web3.to_checksum_address(deploy_app(connection.w3, load_key(**key), connection.deployment, policy))
    answer(as_json, {"app": app}, [f"app {app}, owned by UpgradeOperator {connection.deployment.operator}"])
