"""Several endpoints that must agree: a chain reader that one lying, lagging or dead endpoint does not mislead.

An answer counts when at least N of M endpoints give it in the state of the same block, which at least N of them hold to
be theirs at its number. N is more than half of M. Everything is asked at once; an endpoint that stays silent is waited
for once, and from then on asked without being waited for until it answers again.

An endpoint that is on the same chain (it confirms the agreed block, and answers as the others do there) but has gone
further is asked in the state of its own block too: `Reading.newer`. Whoever decides takes denials from there, and
nothing else. One that is caught having named a block that never came is not believed about newer blocks for a while.

Answers in the state of a block never change, so they are kept as long as that block stays the agreed one; which block
that is, is asked anew every second. So nothing is answered from a state that was left more than a second ago, and many
who ask the same thing cost one request. Where an endpoint that has gone further did not say what it has there, a denial
may be missing: such answers are kept for a second alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from prometheus_client import Counter, Gauge

from dstack.chain.agreed_block import BlockAgreement, View
from dstack.chain.agreement import needed_of, said_by_enough
from dstack.chain.bounded_http import EndpointError
from dstack.chain.client import BLOCK_TAGS
from dstack.chain.gathering import REQUESTS_AT_ONCE, Endpoint, Results, gather, named_endpoints
from dstack.chain.reading import Answer, Newer, Question, Reading
from dstack.chain.rpc_answers import answer_of, question_at
from dstack.chain.single_flight import SingleFlight
from dstack.chain.standing import METRICS
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy.decision import BlockRef

MAX_ENDPOINTS = 9
ENDPOINT_SECONDS = 2.0
HEAD_SECONDS = 1.0
FAILURE_SECONDS = 0.25
CLOCK_SKEW = timedelta(seconds=60)
AHEAD_LIMIT = timedelta(hours=1)
KEPT_ANSWERS = 4096

READINGS = Counter(
    "dstack_chain_readings", "Questions to the chain, by what became of them.", ["outcome"], registry=METRICS
)
AGREED_BLOCK = Gauge("dstack_chain_agreed_block", "Number of the block that answers rest on.", registry=METRICS)
AGREED_BLOCK_TIME = Gauge("dstack_chain_agreed_block_time", "Its time, in Unix seconds.", registry=METRICS)

_Questions = tuple[Question, ...]
_Answers = tuple[Answer, ...]


class Endpoints:
    """Asks several endpoints; a `ChainReader`. May be used by several threads at once."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        block_tag: str = "finalized",
        agreement: int | None = None,
        chain_id: int | None = None,
        max_age: timedelta | None = None,
        seconds: float = ENDPOINT_SECONDS,
        head_seconds: float = HEAD_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the settings; nothing is asked yet.

        Args:
            urls: http or https, at most `MAX_ENDPOINTS`, each at a host of its own.
            block_tag: Which block answers rest on: "finalized", "safe" or "latest".
            agreement: How many endpoints must agree; None for more than half.
            chain_id: The chain wanted; None for any that enough of them agree on.
            max_age: How old the agreed block may be by *clock*; with it goes that it must not be in the future. None
                for development chains, whose clock is set by hand.
            seconds: How long one endpoint may take for one request.
            head_seconds: For how long the agreed block is kept: what is granted shows that much later at most, and so
                does what is denied.
            clock: The time, in Unix seconds.

        Raises:
            ConfigError: A setting is not of its form.
        """
        if not 1 <= len(urls) <= MAX_ENDPOINTS:
            raise ConfigError(f"chain endpoints: want 1 to {MAX_ENDPOINTS}, got {len(urls)}")
        if block_tag not in BLOCK_TAGS:
            raise ConfigError(f"block tag: want one of {', '.join(BLOCK_TAGS)}, got {block_tag!r}")
        needed = needed_of(len(urls), agreement)
        endpoints = named_endpoints(urls, seconds=seconds)
        self._pool = ThreadPoolExecutor(REQUESTS_AT_ONCE * len(urls), thread_name_prefix="chain")
        self._blocks = BlockAgreement(
            self._pool,
            endpoints,
            needed=needed,
            block_tag=block_tag,
            chain_id=chain_id,
            seconds=seconds,
            # The agreed block is no older than that, and nobody's block is from the future.
            ahead_limit=(max_age or AHEAD_LIMIT) + CLOCK_SKEW,
        )
        self._tag = block_tag
        self._max_age = max_age
        self._seconds = seconds
        self._head_seconds = head_seconds
        self._clock = clock
        self._slots = threading.BoundedSemaphore(REQUESTS_AT_ONCE)
        self._flights = SingleFlight()
        self._lock = threading.Lock()
        self._view: View | None = None
        # Each with the time until which it is kept.
        self._answers: dict[_Questions, tuple[Reading, float]] = {}
        self._failed: tuple[float, ChainUnavailableError] | None = None

    @property
    def block_tag(self) -> str:
        """Which block answers rest on."""
        return self._tag

    @property
    def complaints(self) -> dict[str, str]:
        """What is wrong with each endpoint, by its name; empty where nothing is known to be."""
        return {endpoint.standing.name: endpoint.standing.complaint for endpoint in self._blocks.endpoints}

    def close(self) -> None:
        """End its threads and connections, when what is being asked has come to its deadline."""
        self._pool.shutdown(cancel_futures=True)
        for endpoint in self._blocks.endpoints:
            endpoint.close()

    def read(self, questions: Sequence[Question]) -> Reading:
        """The answers to *questions*, in the state of one block that enough endpoints agree on.

        Raises:
            ChainUnavailableError: Too few of them agree, or the block is too old; neither yes nor no.
        """
        key = tuple(questions)
        try:
            view = self._fresh_view()
            kept = self._kept(view, key) if view else None
            reading = kept or self._flights.run(key, lambda: self._read(key))
        except ChainUnavailableError:
            READINGS.labels("unavailable").inc()
            raise
        READINGS.labels("kept" if kept else "asked").inc()
        return reading

    def _read(self, questions: _Questions) -> Reading:
        if not self._slots.acquire(timeout=self._seconds):
            raise ChainUnavailableError("chain: too many questions at once")
        try:
            view = self._fresh_view()
            if view is not None:
                try:
                    return self._answers_at(view, questions)
                except ChainUnavailableError:
                    pass  # Who agreed a moment ago may be gone, and others be back.
            return self._answers_at(self._flights.run("view", self._take_view), questions)
        finally:
            self._slots.release()

    # -- which block --

    def _fresh_view(self) -> View | None:
        """The agreed block, if it was agreed on a moment ago and is not too old."""
        view = self._view
        if view is None or time.monotonic() - view.taken > self._head_seconds:
            return None
        self._require_age(view.head.block)
        return view

    def _take_view(self) -> View:
        if self._failed is not None and time.monotonic() - self._failed[0] < FAILURE_SECONDS:
            raise type(self._failed[1])(str(self._failed[1]))
        try:
            view = self._blocks.take()
            self._require_age(view.head.block)
        except ChainUnavailableError as exc:
            self._failed = time.monotonic(), exc
            raise
        with self._lock:
            if self._view is None or self._view.state != view.state:
                self._answers = {}
            self._view = view
        AGREED_BLOCK.set(view.head.block.number)
        AGREED_BLOCK_TIME.set(view.head.block.timestamp)
        return view

    def _require_age(self, block: BlockRef) -> None:
        if self._max_age is None:
            return
        age = timedelta(seconds=round(self._clock() - block.timestamp))
        if age > self._max_age:
            raise ChainUnavailableError(
                f"chain: {self._tag} block {block.number} is {age} old, want at most {self._max_age}: "
                "the endpoints or this machine's clock do not keep up"
            )
        if age < -CLOCK_SKEW:
            raise ChainUnavailableError(
                f"chain: {self._tag} block {block.number} is {-age} in the future: this machine's clock is behind"
            )

    # -- what it says --

    def _answers_at(self, view: View, questions: _Questions) -> Reading:
        reading = self._kept(view, questions)
        if reading is None:
            reading = self._ask(view, questions)
            self._keep(view, questions, reading)
        return reading

    def _kept(self, view: View, questions: _Questions) -> Reading | None:
        with self._lock:
            is_current = self._view is not None and self._view.state == view.state
            reading, until = self._answers.get(questions, (None, 0.0))
            return reading if is_current and time.monotonic() < until else None

    def _keep(self, view: View, questions: _Questions, reading: Reading) -> None:
        is_whole = len(reading.newer) == len(view.ahead)
        until = math.inf if is_whole else time.monotonic() + self._head_seconds
        with self._lock:
            if self._view is None or self._view.state != view.state:
                return
            if len(self._answers) >= KEPT_ANSWERS:
                self._answers.clear()
            self._answers[questions] = reading, until

    def _ask(self, view: View, questions: _Questions) -> Reading:
        if not questions:
            # JSON-RPC knows no empty batch; the agreed block is the whole answer.
            return Reading(view.head.chain_id, view.head.block, ())
        here = [question_at(question, view.head.block) for question in questions]
        further = dict(view.ahead)
        jobs = {
            endpoint: here + [question_at(question, further[endpoint]) for question in questions if endpoint in further]
            for endpoint in view.voters
        }

        def is_enough(done: Results) -> bool:
            return said_by_enough(_said(done, questions), self._blocks.needed) is not None

        results = gather(self._pool, jobs, seconds=self._seconds, is_enough=is_enough)
        said = _said(results, questions, report=True)
        found = said_by_enough(said, self._blocks.needed)
        if found is None:
            raise self._blocks.disagreement("the answer")
        answers, agreeing = found
        for endpoint in set(said) - agreeing:
            endpoint.standing.failed("disagrees", f"answers otherwise than others at block {view.head.block.number}")
        ahead = {endpoint: results[endpoint][len(questions) :] for endpoint in further if endpoint in agreeing}
        newer = [
            Newer(endpoint.standing.name, further[endpoint], newer_answers)
            for endpoint, newer_answers in _said(ahead, questions, report=True).items()
        ]
        return Reading(view.head.chain_id, view.head.block, answers, tuple(newer))


def _said(results: Results, questions: _Questions, *, report: bool = False) -> dict[Endpoint, _Answers]:
    """The answers of each endpoint whose answers are of their form; the others are reported, if wanted."""
    said = {}
    for endpoint, found in results.items():
        try:
            said[endpoint] = tuple(answer_of(question, one) for question, one in zip(questions, found, strict=False))
        except EndpointError as exc:
            if report:
                endpoint.standing.failed(exc.fault, str(exc))
    return said
