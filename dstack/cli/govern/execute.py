"""`dstack govern execute`: put a Ready proposal in force; anybody may."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.action_text import parse_hash
from dstack.chain.action_words import proposal_sentence
from dstack.chain.operator import execute_call
from dstack.chain.tx import send, simulate
from dstack.cli.govern.connection import answer, connect, connection_options, progress
from dstack.cli.govern.keys import key_options, load_key
from dstack.cli.govern.outcome import outcome

_EXAMPLES = """\b
Examples:
  dstack govern execute 0x51f0... --key-file payer.key
  dstack govern execute 0x51f0... --key-env PAYER_KEY --json"""


@click.command(name="execute", epilog=_EXAMPLES)
@click.argument("proposal_id", metavar="ID")
@connection_options
@key_options
def command(*, proposal_id: str, deployment: str, rpc_url: str, as_json: bool, **key: Any) -> None:
    """Put proposal ID in force, from its earliest time on and within 14 days. Any key may; it only pays."""
    wanted = parse_hash(proposal_id, what="ID")
    connection = connect(rpc_url, deployment)
    known = connection.governed().find(wanted, connection.deployment)
    call = execute_call(known.proposal)
    # The contract looks at what is executed, never at who sends it.
    simulate(connection.w3, connection.deployment.operator, call)
    sentence = proposal_sentence(known.actions, ready_at=known.proposal.ready_at)
    if not as_json:
        click.echo(sentence)
    receipt = send(connection.w3, load_key(**key), call, say=progress)
    came = outcome(receipt, chain_id=connection.deployment.chain_id, operator=connection.deployment.operator)
    answer(as_json, {"id": "0x" + wanted.hex(), "sentence": sentence} | came.facts, came.lines)
