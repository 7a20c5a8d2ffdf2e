"""`dstack govern cancel`: stop a proposal before it is executed."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.action_text import parse_hash
from dstack.chain.action_words import proposal_sentence
from dstack.chain.operator import cancel_call
from dstack.cli.govern.acting import account_of, act, acting_options, role_option
from dstack.cli.govern.connection import connect, connection_options

_EXAMPLES = """\b
Examples:
  dstack govern cancel 0x51f0... --as guardian --key-file guardian.json
  dstack govern cancel 0x51f0... --out cancel.json"""


@click.command(name="cancel", epilog=_EXAMPLES)
@click.argument("proposal_id", metavar="ID")
@role_option
@connection_options
@acting_options
def command(*, proposal_id: str, role: str, deployment: str, rpc_url: str, as_json: bool, **how: Any) -> None:
    """Stop proposal ID for good, while it is Waiting or Ready. Owner or guardian may."""
    wanted = parse_hash(proposal_id, what="ID")
    connection = connect(rpc_url, deployment)
    known = connection.governed().find(wanted, connection.deployment)
    sentence = "will never happen: " + proposal_sentence(known.actions, ready_at=known.proposal.ready_at)
    facts = {"id": "0x" + wanted.hex(), "sentence": sentence}
    account = account_of(connection, role)
    act(
        connection,
        cancel_call(known.proposal),
        account,
        role=role,
        as_json=as_json,
        facts=facts,
        lines=[sentence],
        **how,
    )
