"""`dstack govern powers`: who can do what, how soon."""

from __future__ import annotations

from dataclasses import asdict

import click

from dstack.chain.client import checked_address
from dstack.chain.outlook import powers
from dstack.chain.safe_account import MAX_NESTING, read_safe
from dstack.cli.govern.connection import Connection, answer, connect, connection_options

_EXAMPLES = """\b
Examples:
  dstack govern powers
  dstack govern powers --json"""


@click.command(name="powers", epilog=_EXAMPLES)
@connection_options
def command(*, deployment: str, rpc_url: str, as_json: bool) -> None:
    """List every power over the governed contracts, and the keys behind owner and guardian."""
    connection = connect(rpc_url, deployment)
    governed = connection.governed()
    listed = powers(governed)
    accounts = {"owner": governed.owner, "guardian": governed.guardian}
    keys = {role: _keys(connection, account, 0) for role, account in accounts.items()}
    facts = {"powers": [asdict(power) for power in listed], "keys": keys}
    lines = [f"{power.who}\n    {power.what}\n    {power.how_soon}" for power in listed]
    for role, tree in keys.items():
        lines += [f"keys of the {role}:", *tree]
    answer(as_json, facts, lines)


def _keys(connection: Connection, account: str, depth: int) -> list[str]:
    """The accounts behind *account*, Safes in Safes opened up."""
    address = checked_address(account, what="owner")
    safe = read_safe(connection.w3, address)
    indent = "  " * (depth + 1)
    if safe is None:
        kind = "contract" if connection.w3.eth.get_code(address) else "key"
        return [f"{indent}{kind} {address}"]
    lines = [f"{indent}Safe {address}: {safe.threshold} of {len(safe.owners)}"]
    if depth >= MAX_NESTING:
        return [*lines, f"{indent}  not looked at further"]
    return lines + [line for owner in safe.owners for line in _keys(connection, owner, depth + 1)]
