"""`dstack govern accept`: take the role that a proposal named you for."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.bindings import encode_call
from dstack.chain.tx import Call
from dstack.cli.govern.acting import act, acting_options, role_option
from dstack.cli.govern.connection import connect, connection_options
from dstack.errors import RefusedError

_FUNCTIONS = {"owner": "acceptOwnership", "guardian": "acceptGuardian"}
_EXAMPLES = """\b
Examples:
  dstack govern accept --as guardian --key-file guardian.json
  dstack govern accept --as owner --out accept.json"""


@click.command(name="accept", epilog=_EXAMPLES)
@role_option
@connection_options
@acting_options
def command(*, role: str, deployment: str, rpc_url: str, as_json: bool, **how: Any) -> None:
    """Become owner or guardian: the account that an executed proposal named, within 14 days."""
    connection = connect(rpc_url, deployment)
    named = [one for one in connection.governed().nominations if one.role.lower() == role]
    if not named:
        raise RefusedError(f"{role}: nobody is named for this role")
    sentence = f"{named[0].account} is {role} from now on"
    call = Call(connection.deployment.operator, encode_call("UpgradeOperator", _FUNCTIONS[role]))
    facts = {"sentence": sentence}
    act(connection, call, named[0].account, role=role, as_json=as_json, facts=facts, lines=[sentence], **how)
