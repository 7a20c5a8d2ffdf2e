"""What an UpgradeOperator says: who may do what, what was proposed, and where it stands."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_typing import ChecksumAddress
from web3 import Web3

from dstack.chain.bindings import encode_call
from dstack.chain.client import CallRevertedError, ChainClient, parse_address
from dstack.chain.operator import PROPOSAL_QUEUED, Delays, Proposal, State, parse_proposal
from dstack.errors import ChainUnavailableError
from dstack.policy.decision import BlockRef
from dstack.values import Digest32


class OperatorReader:
    """Asks one UpgradeOperator; each answer rests on one block."""

    def __init__(self, client: ChainClient, address: str, *, first_block: int = 0) -> None:
        """Take the settings; nothing is asked yet.

        Args:
            client: The endpoint.
            address: The contract.
            first_block: Where it was deployed, or earlier; proposals are looked for from there on.

        Raises:
            ConfigError: *address* is not an address.
        """
        self._client = client
        self._first_block = first_block
        self.address = parse_address(address, what="UpgradeOperator")

    def owner(self) -> ChecksumAddress:
        """Who may propose, cancel and deny."""
        return Web3.to_checksum_address(self._read("address", "owner"))

    def guardian(self) -> ChecksumAddress:
        """Who else may cancel and deny."""
        return Web3.to_checksum_address(self._read("address", "guardian"))

    def delays(self) -> Delays:
        """Between proposal and earliest execution, for what is proposed now."""
        policy, roles, upgrades = self._read("(uint48,uint48,uint48)", "delays")
        return Delays(timedelta(seconds=policy), timedelta(seconds=roles), timedelta(seconds=upgrades))

    def state(self, proposal: Digest32) -> State:
        """Where the proposal of this id stands.

        Raises:
            ChainUnavailableError: It could not be asked, or answers in another form.
        """
        try:
            return State(self._read("uint8", "stateOf", proposal))
        except ValueError as exc:
            raise ChainUnavailableError("UpgradeOperator: the endpoint shows an unknown state") from exc

    def proposals(self) -> tuple[Proposal, ...]:
        """Every proposal there ever was, oldest first, each checked against its id, none missing.

        Raises:
            ChainUnavailableError: It could not be asked, or the endpoint shows other or fewer proposals than ids.
        """
        block = self._client.block()
        chain_id = self._client.chain_id
        logs = self._client.logs(self.address, PROPOSAL_QUEUED, since=self._first_block, until=block)
        found = tuple(parse_proposal(log, chain_id=chain_id, operator=self.address) for log in logs)
        count = self._read("uint256", "proposalCount", block=block)
        if [proposal.nonce for proposal in found] != list(range(count)):
            raise ChainUnavailableError(f"UpgradeOperator: want {count} proposals, the endpoint shows {len(found)}")
        return found

    def _read(self, type_name: str, function: str, *arguments: Any, block: BlockRef | None = None) -> Any:
        question = encode_call("UpgradeOperator", function, *arguments)
        try:
            answer = self._client.call(self.address, question, block or self._client.block())
            (value,) = decode([type_name], answer)
        except (CallRevertedError, DecodingError) as exc:
            raise ChainUnavailableError(f"UpgradeOperator: {self.address} does not answer as one") from exc
        return value
