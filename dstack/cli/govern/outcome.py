"""What a transaction came to, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass

from eth_typing import ChecksumAddress
from web3.types import TxReceipt

from dstack.chain.operator import PROPOSAL_QUEUED, proposal_in
from dstack.cli.govern.connection import mined


@dataclass(frozen=True, slots=True)
class Outcome:
    """The same in two forms."""

    facts: dict[str, object]
    lines: list[str]


def outcome(receipt: TxReceipt, *, chain_id: int, operator: ChecksumAddress) -> Outcome:
    """Read a receipt: where the transaction is, and the proposal it made, if it made one.

    Raises:
        ChainUnavailableError: The endpoint shows other content than the proposal's id.
    """
    facts = mined(receipt)
    lines = [f"transaction {facts['transaction']} in block {facts['block']}"]
    if any(log["topics"] and bytes(log["topics"][0]) == PROPOSAL_QUEUED for log in receipt["logs"]):
        made = proposal_in(receipt, chain_id=chain_id, operator=operator)
        facts |= {
            "id": "0x" + made.id.hex(),
            "ready_at": made.ready_at.isoformat(),
            "expires_at": made.expires_at.isoformat(),
        }
        lines += [f"proposal 0x{made.id.hex()}", f"anybody can execute it from {made.ready_at:%F %R} UTC on"]
    return Outcome(facts, lines)
