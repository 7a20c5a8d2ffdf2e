"""`dstack govern approve`: a Safe that owns a Safe agrees to one of its transactions."""

from __future__ import annotations

import click

from dstack.chain.client import checked_address
from dstack.chain.safe_account import approve_call, read_safe
from dstack.cli.govern.connection import answer, json_option, open_web3, rpc_option
from dstack.cli.govern.signing import file_facts, file_lines, make_signing_file, nonce_option, read_signing_file
from dstack.errors import RefusedError

_EXAMPLES = """\b
Examples:
  dstack govern approve proposal.json --safe 0x19f4... --out parent.json
  dstack govern sign parent.json --inner proposal.json --key-file owner.json
  dstack govern submit parent.json --key-file payer.key && dstack govern submit proposal.json --key-file payer.key"""


@click.command(name="approve", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--safe", "parent", metavar="ADDRESS", required=True, help="The Safe that owns FILE's Safe.")
@click.option("--out", metavar="OUT", required=True, help="The signing file for the owners of --safe; must not exist.")
@nonce_option
@rpc_option
@json_option
def command(*, file: str, parent: str, out: str, nonce: int | None, rpc_url: str, as_json: bool) -> None:
    """Write the signing file by which the owners of one Safe agree to FILE, a transaction of a Safe that it owns.

    Once it is submitted, `submit FILE` counts it as the owner's signature. Works for Safes in Safes in Safes.
    """
    inner = read_signing_file(file)
    address = checked_address(parent, what="--safe")
    w3 = open_web3(rpc_url)
    child = read_safe(w3, inner.transaction.safe)
    safe = read_safe(w3, address)
    if safe is None:
        raise RefusedError(f"Safe: there is none at {address} on this chain")
    if child is None or address not in child.owners:
        raise RefusedError(f"Safe: {address} is not an owner of {inner.transaction.safe}")
    made = make_signing_file(w3, safe, approve_call(inner.transaction), out=out, nonce=nonce)
    answer(as_json, file_facts(made) | {"file": out}, [*file_lines(made), f"written to {out}; sign it, then submit it"])
