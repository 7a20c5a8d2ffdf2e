"""`dstack govern rollback`: undo an executed proposal, by owner and guardian together, without waiting."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.action_text import parse_hash
from dstack.chain.action_words import grant_sentence
from dstack.chain.operator import agree_to_rollback_call, roll_back_call
from dstack.cli.govern.acting import account_of, act, acting_options, role_option
from dstack.cli.govern.connection import connect, connection_options

_EXAMPLES = """\b
Examples:
  dstack govern rollback 0x51f0... --out agree.json
  dstack govern rollback 0x51f0... --as guardian --key-file guardian.json"""


@click.command(name="rollback", epilog=_EXAMPLES)
@click.argument("proposal_id", metavar="ID")
@role_option
@connection_options
@acting_options
def command(*, proposal_id: str, role: str, deployment: str, rpc_url: str, as_json: bool, **how: Any) -> None:
    """Agree to the rollback staged with proposal ID; the second of owner and guardian runs it with this command.

    Within 14 days of the execution, once. What is in it was announced with the proposal.
    """
    wanted = parse_hash(proposal_id, what="ID")
    connection = connect(rpc_url, deployment)
    governed = connection.governed()
    known = governed.find(wanted, connection.deployment)
    account, other = (account_of(connection, one) for one in (role, "guardian" if role == "owner" else "owner"))
    runs = known.rollback_agreed_by == other
    call = roll_back_call(known.proposal) if runs else agree_to_rollback_call(known.proposal)
    undone = "; ".join(map(grant_sentence, known.proposal.content.rollback))
    sentence = f"{'at once' if runs else 'once the other one agrees too'}: {undone}"
    facts = {"id": "0x" + wanted.hex(), "sentence": sentence, "runs": runs}
    act(connection, call, account, role=role, as_json=as_json, facts=facts, lines=[sentence], **how)
