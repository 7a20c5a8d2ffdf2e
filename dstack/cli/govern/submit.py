"""`dstack govern submit`: a transaction that enough owners signed, sent to their Safe."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.safe_submission import prepare_submission
from dstack.chain.signing_file import merge_signing_files
from dstack.chain.tx import send
from dstack.cli.govern.connection import answer, json_option, mined, open_web3, progress, rpc_option
from dstack.cli.govern.keys import key_options, load_key
from dstack.cli.govern.outcome import outcome
from dstack.cli.govern.signing import file_lines, read_signing_file, transaction_facts

_EXAMPLES = """\b
Examples:
  dstack govern submit proposal.json --key-file payer.key
  dstack govern submit copy-of-alice.json copy-of-bob.json --key-file payer.key --json"""


@click.command(name="submit", epilog=_EXAMPLES)
@click.argument("files", nargs=-1, required=True)
@rpc_option
@key_options
@json_option
def command(*, files: tuple[str, ...], rpc_url: str, as_json: bool, **key: Any) -> None:
    """Have the Safe make the transaction in FILES, copies of one signing file; the key only pays.

    Owners that are Safes themselves need no place in the file: what they approved on the chain counts.
    """
    file = merge_signing_files([read_signing_file(path) for path in files])
    w3 = open_web3(rpc_url)
    call = prepare_submission(w3, file)
    if not as_json:
        click.echo("\n".join(file_lines(file)))
    receipt = send(w3, load_key(**key), call, say=progress)
    came = outcome(receipt, chain_id=file.transaction.chain_id, operator=file.transaction.to)
    answer(as_json, transaction_facts(file.transaction) | mined(receipt) | came.facts, came.lines)
