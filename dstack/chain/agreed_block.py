"""Which block several endpoints agree on, who of them holds it to be theirs, and who has gone further."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta

from dstack.chain.agreement import Head, block_numbers, said_by_enough
from dstack.chain.bounded_http import EndpointError
from dstack.chain.gathering import Endpoint, Results, gather
from dstack.chain.rpc import Request
from dstack.chain.rpc_answers import block_of, block_request, number_of
from dstack.errors import ChainElsewhereError, ChainUnavailableError
from dstack.policy.decision import BlockRef

ELSEWHERE = "elsewhere"
"""The fault of an endpoint that is on another chain."""

_ROUNDS = 2
# Chain id and block come first in each endpoint's results, then the blocks that were claimed.
_CLAIMS_AT = 2


@dataclass(frozen=True, slots=True)
class View:
    """The agreed block.

    Attributes:
        head: The block, and the chain.
        voters: The endpoints that hold it to be theirs.
        ahead: Those of them that have gone further, and where they stand.
        taken: `time.monotonic` when they were asked.
    """

    head: Head
    voters: frozenset[Endpoint]
    ahead: tuple[tuple[Endpoint, BlockRef], ...]
    taken: float

    @property
    def state(self) -> tuple[object, ...]:
        """What answers depend on."""
        return self.head, self.voters, self.ahead


class BlockAgreement:
    """Finds the block that enough endpoints agree on.

    Attributes:
        endpoints: All of them.
        needed: How many must agree.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        endpoints: Sequence[Endpoint],
        *,
        needed: int,
        block_tag: str,
        chain_id: int | None,
        seconds: float,
        ahead_limit: timedelta,
    ) -> None:
        """Take the settings.

        Args:
            pool: Asks the endpoints.
            endpoints: All of them.
            needed: How many must agree.
            block_tag: Which block, such as `finalized`.
            chain_id: The chain it must be; None for any.
            seconds: How long one endpoint may take.
            ahead_limit: How much later a single endpoint's block may be than the agreed one.
        """
        self.endpoints = endpoints
        self.needed = needed
        self._pool = pool
        self._tag = block_tag
        self._chain_id = chain_id
        self._seconds = seconds
        self._ahead_seconds = ahead_limit.total_seconds()

    def take(self) -> View:
        """Ask all of them now.

        Raises:
            ChainElsewhereError: As many as must agree are on another chain.
            ChainUnavailableError: Too few agree.
        """
        taken = time.monotonic()
        results = self._ask_heads()
        heads = self._heads(results)
        for number in block_numbers(heads, self.needed)[:_ROUNDS]:
            votes = self._votes(heads, number)
            if found := said_by_enough(votes, self.needed):
                agreed, voters = found
                self._judge_claims(results, agreed, voters)
                self._judge_others(agreed, voters, heads, votes)
                return View(agreed, voters, self._ahead(agreed, voters, heads), taken)
        raise self.disagreement("the block")

    def disagreement(self, subject: str) -> ChainUnavailableError:
        """The error that says what is wrong with each endpoint."""
        standings = [endpoint.standing for endpoint in self.endpoints]
        said = "; ".join(f"{one.name}: {one.complaint or 'alone with what it says'}" for one in standings)
        is_elsewhere = sum(one.fault == ELSEWHERE for one in standings) >= self.needed
        kind = ChainElsewhereError if is_elsewhere else ChainUnavailableError
        return kind(f"chain: {subject}: want {self.needed} of {len(self.endpoints)} endpoints to agree: {said}")

    def _ask_heads(self) -> Results:
        claims = [endpoint.claim.number for endpoint in self.endpoints if endpoint.claim]
        requests = [Request("eth_chainId"), block_request(self._tag), *map(block_request, claims)]
        jobs = {endpoint: requests for endpoint in self.endpoints if endpoint.standing.may_be_asked}
        if len(jobs) < self.needed:
            jobs = dict.fromkeys(self.endpoints, requests)
        return self._gather(jobs, already=0)

    def _heads(self, results: Results) -> dict[Endpoint, Head]:
        heads = {}
        for endpoint, (chain, block, *_) in results.items():
            try:
                head = Head(number_of(chain, "chain id"), block_of(block, wanted=self._tag))
            except EndpointError as exc:
                endpoint.standing.failed(exc.fault, str(exc))
                continue
            if self._chain_id is not None and head.chain_id != self._chain_id:
                endpoint.standing.failed(ELSEWHERE, f"is on chain {head.chain_id}, want {self._chain_id}")
                continue
            heads[endpoint] = head
        return heads

    def _votes(self, heads: Mapping[Endpoint, Head], number: int) -> dict[Endpoint, Head]:
        """Which block each endpoint has at *number*; those that have gone further are asked."""
        votes = {endpoint: head for endpoint, head in heads.items() if head.block.number == number}
        further = {endpoint: head for endpoint, head in heads.items() if head.block.number > number}
        done = self._gather({endpoint: [block_request(number)] for endpoint in further}, already=len(votes))
        for endpoint, (block,) in done.items():
            try:
                votes[endpoint] = replace(further[endpoint], block=block_of(block, wanted=f"{number}."))
            except EndpointError as exc:
                endpoint.standing.failed(exc.fault, str(exc))
        return votes

    def _ahead(
        self, agreed: Head, voters: frozenset[Endpoint], heads: Mapping[Endpoint, Head]
    ) -> tuple[tuple[Endpoint, BlockRef], ...]:
        ahead = []
        for endpoint, own in heads.items():
            is_further = endpoint in voters and own.block.number > agreed.block.number
            is_plausible = 0 <= own.block.timestamp - agreed.block.timestamp <= self._ahead_seconds
            if is_further and is_plausible and endpoint.standing.is_believed:
                endpoint.claim = endpoint.claim or own.block
                ahead.append((endpoint, own.block))
        return tuple(ahead)

    def _judge_others(
        self,
        agreed: Head,
        voters: frozenset[Endpoint],
        heads: Mapping[Endpoint, Head],
        votes: Mapping[Endpoint, Head],
    ) -> None:
        number = agreed.block.number
        for endpoint, own in heads.items():
            if endpoint in voters:
                endpoint.standing.agreed()
            elif endpoint in votes:
                endpoint.standing.failed("forked", f"has another block {number} than the others")
            elif own.block.number < number:
                endpoint.standing.failed("behind", f"stands at block {own.block.number}, the others at {number}")

    def _judge_claims(self, results: Results, agreed: Head, voters: frozenset[Endpoint]) -> None:
        """Compare blocks that single endpoints once named with what became of the chain.

        The block at that number must be the one that was named; and before that, the chain must not get later than it
        without having as many blocks. So a claim is settled when the agreed block comes to its time.
        """
        claimants = [endpoint for endpoint in self.endpoints if endpoint.claim]
        for place, endpoint in enumerate(claimants, start=_CLAIMS_AT):
            claim = endpoint.claim
            assert claim is not None
            found = said_by_enough(_blocks(results, voters, place), self.needed)
            is_overdue = agreed.block.timestamp > claim.timestamp and agreed.block.number < claim.number
            if found is None and not is_overdue:
                continue
            if found is None or found[0] != claim:
                endpoint.standing.caught(f"named a block {claim.number} that never came")
            endpoint.claim = None

    def _gather(self, jobs: Mapping[Endpoint, Sequence[Request]], *, already: int) -> Results:
        def is_enough(done: Results) -> bool:
            return len(done) + already >= self.needed

        return gather(self._pool, jobs, seconds=self._seconds, is_enough=is_enough)


def _blocks(results: Results, voters: frozenset[Endpoint], place: int) -> dict[Endpoint, BlockRef]:
    """What each voter has at that place of its results; one that has not come there says nothing."""
    blocks = {}
    for voter in voters & set(results):
        try:
            blocks[voter] = block_of(results[voter][place], wanted="claimed")
        except EndpointError:
            continue
    return blocks
