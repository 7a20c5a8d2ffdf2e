"""`dstack govern anchor`: put the digest of a handover's receipt on record."""

from __future__ import annotations

from typing import Any

import click

from dstack.chain.action_text import parse_hash
from dstack.chain.client import checked_address
from dstack.chain.operator import anchor_call
from dstack.chain.tx import send, simulate
from dstack.cli.govern.connection import answer, connect, connection_options, mined, progress
from dstack.cli.govern.keys import key_options, load_key

_EXAMPLES = """\b
Examples:
  dstack govern anchor 51f0... --app 0xa9b0... --key-file node.key
  dstack govern history --event ReceiptAnchored --json"""


@click.command(name="anchor", epilog=_EXAMPLES)
@click.argument("digest", metavar="DIGEST")
@click.option("--app", metavar="ADDRESS", required=True, help="The app whose secure file was handed over.")
@connection_options
@key_options
def command(*, digest: str, app: str, deployment: str, rpc_url: str, as_json: bool, **key: Any) -> None:
    """Have the chain say that a receipt with this DIGEST exists, and whose key said so. Any key may.

    Nothing is checked or stored: it is an event, found by its sender. What the receipt says is in the receipt.
    """
    wanted = parse_hash(digest, what="DIGEST")
    address = checked_address(app, what="--app")
    connection = connect(rpc_url, deployment)
    call = anchor_call(connection.deployment.operator, address, wanted)
    signer = load_key(**key)
    simulate(connection.w3, signer.address, call)
    receipt = send(connection.w3, signer, call, say=progress)
    facts = {"app": address, "digest": wanted.hex(), "by": signer.address} | mined(receipt)
    lines = [f"anchored {wanted.hex()} for app {address}, by {signer.address}", f"block {receipt['blockNumber']}"]
    answer(as_json, facts, lines)
