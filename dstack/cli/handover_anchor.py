"""`dstack handover anchor`: put the digest of a receipt on the chain, as an event."""

from __future__ import annotations

from typing import Any

import click
from web3 import Web3

from dstack.chain.bindings import encode_call
from dstack.chain.tx import Call, send
from dstack.cli.files import read_input
from dstack.cli.govern.connection import answer, connect, connection_options, progress
from dstack.cli.govern.keys import key_options, load_key
from dstack.cli.handover_receipt import MAX_RECEIPT
from dstack.errors import RefusedError
from replicator.custody import Receipt, read_receipt
from replicator.documents import document, inner

_EXAMPLES = """\b
Examples:
  dstack handover anchor 4f..a0.received.json --key-file payer.key
  dstack handover anchor receipt.json --deployment deployment.json --key-env PAYER_KEY --json"""


@click.command(name="anchor", epilog=_EXAMPLES, short_help="put the digest of a receipt on record")
@click.argument("receipt")
@connection_options
@key_options
def command(*, receipt: str, deployment: str, rpc_url: str, as_json: bool, **key: Any) -> None:
    """Anchor RECEIPT, a file of a replicator's receipts folder or what `--receipt` wrote.

    The event proves that the receipt existed by then and who says so, and nothing else. Any key may; it only pays.
    """
    kept = _receipt(read_input(receipt, limit=MAX_RECEIPT))
    connection = connect(rpc_url, deployment)
    law, operator = kept.terms.request.law, connection.deployment.operator
    if (law.chain_id, f"0x{law.operator.hex()}") != (connection.deployment.chain_id, operator.lower()):
        raise RefusedError(
            f"receipt: it is of chain {law.chain_id} and UpgradeOperator 0x{law.operator.hex()}, "
            f"the deployment is of chain {connection.deployment.chain_id} and {operator}"
        )
    app = Web3.to_checksum_address(kept.terms.request.app_id)
    call = Call(operator, encode_call("UpgradeOperator", "anchorReceipt", app, bytes(kept.hash())))
    done = send(connection.w3, load_key(**key), call, say=progress)
    facts = {"receipt": kept.hash().hex(), "app": app, "block": done["blockNumber"], "by": done["from"]}
    answer(as_json, facts, [f"receipt {facts['receipt']} is anchored in block {facts['block']} by {facts['by']}"])


def _receipt(raw: bytes) -> Receipt:
    """The receipt, alone or with its evidence beside it."""
    members = document(raw, what="receipt file", limit=MAX_RECEIPT)
    return read_receipt(inner(members, "receipt") if "receipt" in members.values else members)
