"""`dstack govern deploy`: put the contracts on a chain."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from dstack.chain.client import checked_address
from dstack.chain.deploy import deploy_system
from dstack.chain.deployment_file import serialise_deployment
from dstack.chain.operator import Delays
from dstack.chain.tx import translated
from dstack.cli.govern.connection import answer, json_option, open_web3, progress, rpc_option
from dstack.cli.govern.keys import key_options, load_key
from dstack.errors import ConfigError, InputError

_EXAMPLES = """\b
Examples:
  dstack govern deploy --chain-id 1 --owner 0x5afe... --guardian 0x9a7d... --key-file payer.json --out deployment.json
  dstack govern deploy --chain-id 1 --owner 0x5afe... --guardian 0x9a7d... --policy-delay 72 --key-env PAYER_KEY"""


@click.command(name="deploy", epilog=_EXAMPLES)
@click.option("--chain-id", type=click.IntRange(1), required=True, help="The chain that it must be.")
@click.option("--owner", metavar="ADDRESS", required=True, help="Who proposes, cancels and denies: best a Safe.")
@click.option("--guardian", metavar="ADDRESS", required=True, help="Who else may cancel and deny; not the owner.")
@click.option("--policy-delay", type=click.IntRange(48, 8760), default=48, show_default=True, help="Hours.")
@click.option("--roles-delay", type=click.IntRange(48, 8760), default=48, show_default=True, help="Hours.")
@click.option("--upgrades-delay", type=click.IntRange(48, 8760), default=168, show_default=True, help="Hours.")
@click.option("--out", default="deployment.json", show_default=True, metavar="FILE", help="Must not exist.")
@rpc_option
@key_options
@json_option
def command(
    *,
    chain_id: int,
    owner: str,
    guardian: str,
    policy_delay: int,
    roles_delay: int,
    upgrades_delay: int,
    out: str,
    rpc_url: str,
    as_json: bool,
    **key: Any,
) -> None:
    """Deploy UpgradeOperator, which --owner owns, and KmsAuth, which UpgradeOperator owns; allow nothing yet.

    The key only pays, and keeps no power over anything.
    """
    accounts = checked_address(owner, what="--owner"), checked_address(guardian, what="--guardian")
    if accounts[0] == accounts[1]:
        raise InputError("--guardian: want another account than the owner; it is there for when the owner fails")
    if Path(out).exists():
        raise InputError(f"{out}: exists already, and would be replaced")
    w3 = open_web3(rpc_url)
    with translated():
        found, first_block = w3.eth.chain_id, w3.eth.block_number
    if found != chain_id:
        raise ConfigError(f"chain id: want {chain_id}, the endpoint is on {found}")
    hours = (timedelta(hours=number) for number in (policy_delay, roles_delay, upgrades_delay))
    payer = load_key(**key)
    progress("deploying four contracts")
    deployment = deploy_system(w3, payer, owner=accounts[0], guardian=accounts[1], delays=Delays(*hours))
    try:
        Path(out).write_bytes(serialise_deployment(deployment, first_block=first_block))
    except OSError as exc:
        raise InputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
    facts = {
        "chain_id": deployment.chain_id,
        "operator": deployment.operator,
        "kms_auth": deployment.kms_auth,
        "app_implementation": deployment.app_implementation,
        "first_block": first_block,
        "file": out,
    }
    answer(as_json, facts, [f"{name.replace('_', ' '):19} {value}" for name, value in facts.items()])
