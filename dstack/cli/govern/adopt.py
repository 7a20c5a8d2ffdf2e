"""`dstack govern adopt`: govern a contract whose owner offered it to UpgradeOperator."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.bindings import encode_call
from dstack.chain.client import checked_address
from dstack.chain.tx import Call
from dstack.cli.govern.acting import act, acting_options
from dstack.cli.govern.connection import connect, connection_options

_EXAMPLES = """\b
Examples:
  dstack govern adopt 0xa9b0... --key-file owner.json
  dstack govern adopt 0xa9b0... --out adopt.json"""


@click.command(name="adopt", epilog=_EXAMPLES)
@click.argument("target")
@connection_options
@acting_options
def command(*, target: str, deployment: str, rpc_url: str, as_json: bool, **how: Any) -> None:
    """Accept the ownership of TARGET, a KmsAuth or AppAuth whose owner called transferOwnership to UpgradeOperator.

    It cannot be handed on again: from then on its policy changes by proposals and denials only.
    """
    address = checked_address(target, what="TARGET")
    connection = connect(rpc_url, deployment)
    operator = connection.deployment.operator
    sentence = f"contract {address} is governed by UpgradeOperator {operator}, for good"
    call = Call(operator, encode_call("UpgradeOperator", "adopt", address))
    account = connection.operator.owner()
    act(connection, call, account, role="owner", as_json=as_json, facts={"sentence": sentence}, lines=[sentence], **how)
