"""`dstack govern freeze`: no keys for one app, for 7 days."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.client import checked_address
from dstack.chain.operator import Action, Kind
from dstack.cli.govern.acting import acting_options, role_option
from dstack.cli.govern.connection import connect, connection_options
from dstack.cli.govern.deny import deny

_EXAMPLES = """\b
Examples:
  dstack govern freeze 0xa9b0... --as guardian --key-file guardian.json
  dstack govern freeze 0xa9b0... --out freeze.json"""


@click.command(name="freeze", epilog=_EXAMPLES)
@click.argument("app")
@role_option
@connection_options
@acting_options
def command(*, app: str, role: str, deployment: str, rpc_url: str, as_json: bool, **how: Any) -> None:
    """Give APP, an address, no keys for 7 days. Ends by itself; again only 7 days after that, or by a proposal."""
    address = checked_address(app, what="APP")
    connection = connect(rpc_url, deployment)
    action = Action(Kind.APP, connection.deployment.kms_auth, bytes(12) + bytes.fromhex(address[2:]))
    deny(connection, [action], role=role, as_json=as_json, **how)
