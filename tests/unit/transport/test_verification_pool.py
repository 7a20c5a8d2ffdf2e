"""Quotes verified in worker processes: the same answers, bounded, and an event loop that goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verification_policy import STRICT
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import ConfigError, QuoteMalformedError, QuoteUntrustedError, UnavailableError
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.transport.verification_pool import VerificationPool
from dstack.values import Register, ReportData

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
PKI = SimulatedPki.generate(AT, seed=b"pool")
ROOTS = TrustedRoots((simulated_root(PKI.root_der),))
COLLATERAL = PKI.collateral()
MANY = 1000


def quote(number: int) -> bytes:
    """A quote of its own for each number."""
    registers = TdRegisters(*(Register(bytes([n]) * 48) for n in range(5)))
    return make_quote(PKI, registers=registers, report_data=ReportData(number.to_bytes(64, "big")))


@pytest.fixture(scope="module")
def pool() -> Iterator[VerificationPool]:
    """Two workers."""
    with VerificationPool(roots=ROOTS, policy=STRICT) as pool:
        yield pool


def test_answers_are_those_of_verify_quote(pool):
    """What a worker returns, and what it raises, is what `verify_quote` does, step and words included."""
    good = quote(1)
    assert pool.verify(good, COLLATERAL, at=AT) == verify_quote(good, COLLATERAL, roots=ROOTS, at=AT)

    bad = good[:600] + b"\xff" + good[601:]
    with pytest.raises(QuoteUntrustedError, match="step 12: quote: its signature does not verify") as caught:
        pool.verify(bad, COLLATERAL, at=AT)
    assert caught.value.step == 12
    with pytest.raises(QuoteMalformedError, match="want 1000 to 65536 bytes, got 5"):
        pool.verify(b"short", COLLATERAL, at=AT)
    with pytest.raises(QuoteUntrustedError, match=r"step 4: CRL .* not at"):
        pool.verify(good, COLLATERAL, at=AT + timedelta(days=31))


def test_a_thousand_at_once_leave_the_event_loop_free(pool):
    """A thousand verifications run in other processes, and the loop has its turn all along."""

    async def ask() -> tuple[list[VerifiedQuote], list[int]]:
        done, ticks = 0, []

        async def one(number: int) -> VerifiedQuote:
            nonlocal done
            verified = await pool.verify_async(quotes[number], COLLATERAL, at=AT)
            done += 1
            return verified

        async def tick() -> None:
            while done < MANY:
                ticks.append(done)
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        answers = await asyncio.gather(*(one(number) for number in range(MANY)))
        await ticker
        return answers, ticks

    quotes = [quote(number) for number in range(MANY)]
    answers, ticks = asyncio.run(ask())

    assert [answer.quote.report_data for answer in answers] == [number.to_bytes(64, "big") for number in range(MANY)]
    assert os.getpid() not in pool.worker_ids()
    assert len(pool.worker_ids()) == 2
    # Had the loop verified by itself, it would have had no turn before the last.
    between = {count for count in ticks if 0 < count < MANY}
    assert len(between) > 10


def test_more_than_may_wait_are_turned_away():
    """A pool whose places are taken turns the next quote away; a place that is free again is given."""
    with VerificationPool(roots=ROOTS, policy=STRICT, workers=1, waiting=2) as pool:

        async def flood() -> list[object]:
            asked = (pool.verify_async(quote(number), COLLATERAL, at=AT) for number in range(6))
            return await asyncio.gather(*asked, return_exceptions=True)

        answers = asyncio.run(flood())
        refused = [answer for answer in answers if isinstance(answer, UnavailableError)]
        assert sum(isinstance(answer, VerifiedQuote) for answer in answers) == 2
        assert {str(answer) for answer in refused} == {"verification: 2 quotes are waiting already"}
        assert pool.verify(quote(7), COLLATERAL, at=AT).root == ROOTS.roots[0]


def ask_often(pool: VerificationPool) -> None:
    """Ask until somebody notices."""
    for number in range(1000):
        pool.verify(quote(number), COLLATERAL, at=AT)


def test_a_worker_that_dies_is_replaced():
    """A worker killed is "could not ask", once; the next quote is verified by new workers."""
    with VerificationPool(roots=ROOTS, policy=STRICT, workers=1) as pool:
        pool.verify(quote(1), COLLATERAL, at=AT)
        (worker,) = pool.worker_ids()
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="a worker process died"):
            ask_often(pool)

        assert pool.verify(quote(2), COLLATERAL, at=AT).root == ROOTS.roots[0]
        assert worker not in pool.worker_ids()


class Deadly(datetime):
    """A time that ends whoever unpacks it."""

    def __reduce_ex__(self, _protocol: object) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_a_worker_that_dies_of_a_quote_could_not_be_asked():
    """A worker that has read its order and dies says nothing at all: that is "could not ask" too."""
    with VerificationPool(roots=ROOTS, policy=STRICT, workers=1) as pool:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="a worker process died"):
                pool.verify(quote(1), COLLATERAL, at=Deadly(2027, 1, 15, tzinfo=UTC))

        assert pool.verify(quote(1), COLLATERAL, at=AT).root == ROOTS.roots[0]


def test_workers_that_died_take_no_others_with_them():
    """Whoever learns late that its worker died does not end the one in its place, nor who waited for that."""
    asked, told = threading.Event(), threading.Event()

    async def learn_late() -> list[object]:
        task = asyncio.ensure_future(pool.verify_async(quote(2), COLLATERAL, at=AT))
        await asyncio.sleep(0)
        asked.set()
        told.wait(30)
        return await asyncio.gather(task, return_exceptions=True)

    with VerificationPool(roots=ROOTS, policy=STRICT, workers=1) as pool, ThreadPoolExecutor(2) as threads:
        pool.verify(quote(1), COLLATERAL, at=AT)
        (worker,) = pool.worker_ids()
        os.kill(worker, signal.SIGSTOP)
        late = threads.submit(asyncio.run, learn_late())
        asked.wait(30)
        waiting = threads.submit(pool.verify, quote(3), COLLATERAL, at=AT)
        os.kill(worker, signal.SIGKILL)
        first = waiting.exception() or waiting.result()
        replaced = pool.worker_ids()
        told.set()

        outcomes = [first, *late.result()]
        assert {type(outcome) for outcome in outcomes} == {UnavailableError, VerifiedQuote}
        assert [str(one) for one in outcomes if isinstance(one, UnavailableError)] == [
            "verification: a worker process died"
        ]
        assert pool.worker_ids() == replaced
        assert worker not in replaced


def test_an_answer_that_comes_late_is_nobodys():
    """A worker that did not answer in time is ended: what it would say is not taken for the answer to another quote."""
    bad = quote(2)[:600] + b"\xff" + quote(2)[601:]
    with VerificationPool(roots=ROOTS, policy=STRICT, workers=1) as pool:
        pool.verify(quote(1), COLLATERAL, at=AT)
        (worker,) = pool.worker_ids()
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(UnavailableError, match=r"verification: no answer within 0\.2 seconds"):
            pool.verify(quote(1), COLLATERAL, at=AT, timeout=0.2)

        with pytest.raises(QuoteUntrustedError, match="step 12"):
            pool.verify(bad, COLLATERAL, at=AT)
        assert worker not in pool.worker_ids()


def test_each_asker_gets_its_own_answer(pool):
    """Good and bad quotes from many threads at once, under collateral of several makers, come back to who sent them."""
    others = [SimulatedPki.generate(AT, seed=bytes([n])).collateral() for n in range(9)]
    bad = quote(1)[:600] + b"\xff" + quote(1)[601:]

    def outcome(number: int) -> str:
        kind = number % 3
        try:
            verified = pool.verify(
                bad if kind == 1 else quote(number), others[number % 9] if kind == 2 else COLLATERAL, at=AT
            )
        except QuoteUntrustedError as exc:
            return f"step {exc.step}"
        return str(int.from_bytes(verified.quote.report_data, "big"))

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(outcome, range(120)))

    foreign = {outcome for number, outcome in enumerate(outcomes) if number % 3 == 2}
    assert [outcomes[n] for n in range(0, 120, 3)] == [str(n) for n in range(0, 120, 3)]
    assert {outcomes[n] for n in range(1, 120, 3)} == {"step 12"}
    assert len(foreign) == 1
    assert foreign.pop().startswith("step ")


def test_whoever_waits_for_a_pool_that_closes_could_not_ask():
    """A quote that no worker has taken when the pool closes is "could not ask", also in an event loop."""
    pool = VerificationPool(roots=ROOTS, policy=STRICT, workers=1)
    pool.verify(quote(1), COLLATERAL, at=AT)

    async def ask() -> list[object]:
        asked = [asyncio.ensure_future(pool.verify_async(quote(n), COLLATERAL, at=AT)) for n in range(40)]
        await asyncio.sleep(0)
        pool.close()
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())

    turned_away = {str(answer) for answer in answers if not isinstance(answer, VerifiedQuote)}
    assert turned_away == {"verification: the pool is closed"}
    assert all(isinstance(answer, VerifiedQuote | UnavailableError) for answer in answers)


def test_a_closed_pool_answers_nothing():
    """After close there are no workers, and a quote is turned away."""
    pool = VerificationPool(roots=ROOTS, policy=STRICT, workers=1)
    pool.verify(quote(1), COLLATERAL, at=AT)
    (worker,) = pool.worker_ids()
    pool.close()

    with pytest.raises(UnavailableError, match="the pool is closed"):
        pool.verify(quote(1), COLLATERAL, at=AT)
    with pytest.raises(ProcessLookupError, match=r"."):
        os.kill(worker, 0)


@pytest.mark.parametrize("settings", [{"workers": 0}, {"waiting": 0}])
def test_a_pool_without_room_is_a_wrong_setting(settings):
    """No workers, or no places, is refused."""
    with pytest.raises(ConfigError, match="want one or more workers and places"):
        VerificationPool(roots=ROOTS, policy=STRICT, **settings)
