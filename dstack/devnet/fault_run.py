"""Many questions to a chain while one endpoint lies, one hangs and one is killed and started again and again.

Every decision is compared with what the chain had decided at the block that the decision names. Used by tests and
by `make bench`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dstack.chain.kms_auth import KmsAuthReader
from dstack.chain.standing import PROBE_SECONDS
from dstack.devnet.faulty_endpoints import FaultyEndpoint
from dstack.errors import ChainUnavailableError
from dstack.policy import BootInfo, Granted

Truth = Callable[[BootInfo, int], bool]
"""Whether a machine is allowed at a block of this number."""

_SHOWN = 5
_THREADS = 8
_DENIAL_SECONDS = 10.0
# Dead for longer than an endpoint that was found dead is left alone: each death is noticed by whoever goes on asking.
_ALIVE_SECONDS = 0.3
_DEAD_SECONDS = PROBE_SECONDS + 0.3


@dataclass
class Tally:
    """What came of the questions.

    Attributes:
        right: Decisions by what they were, "granted" or "denied".
        wrong: Decisions that are not the chain's at their block, in words.
        unavailable: Questions that could not be asked.
        cut: How often the third endpoint was killed.
    """

    right: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unavailable: int = 0
    cut: int = 0

    def document(self) -> dict[str, Any]:
        """For a report: counts, and the first few wrong answers."""
        return {
            "wrong_answers": len(self.wrong),
            "wrong": self.wrong[:_SHOWN],
            "could_not_ask": self.unavailable,
            "right": dict(self.right),
            "times_killed": self.cut,
        }


@dataclass
class Faults:
    """What was done to endpoints.

    Attributes:
        cut: How often the third was killed.
    """

    cut: int = 0


@contextmanager
def misbehaving(
    endpoints: Sequence[FaultyEndpoint], *, change: Callable[[], None] = lambda: None, change_seconds: float = 0.2
) -> Iterator[Faults]:
    """For the length of a `with` block the first endpoint lies, the second hangs, the third comes and goes.

    Args:
        endpoints: Three or more; all answer honestly again afterwards.
        change: Changes something on the chain, now and then.
        change_seconds: How often.
    """
    faults, over = Faults(), threading.Event()
    lying, hanging, dying = endpoints[:3]

    def come_and_go() -> None:
        while not over.wait(_ALIVE_SECONDS):
            dying.kill()
            faults.cut += 1
            over.wait(_DEAD_SECONDS)
            dying.start()

    def keep_changing() -> None:
        while not over.wait(change_seconds):
            change()

    beside = [threading.Thread(target=work, daemon=True) for work in (come_and_go, keep_changing)]
    lying.lies, hanging.hangs = True, True
    for thread in beside:
        thread.start()
    try:
        yield faults
    finally:
        over.set()
        for thread in beside:
            thread.join()
        lying.lies, hanging.hangs = False, False


def ask_among_faults(
    reader: KmsAuthReader,
    endpoints: Sequence[FaultyEndpoint],
    boots: Sequence[BootInfo],
    truth: Truth,
    *,
    count: int,
    change: Callable[[], None] = lambda: None,
    change_seconds: float = 0.2,
) -> Tally:
    """Ask *count* times about *boots* in turn, the first three endpoints `misbehaving`.

    Args:
        reader: Asks all of *endpoints*.
        endpoints: As `misbehaving` takes them.
        boots: The machines asked about.
        truth: What the chain decided, by block.
        count: How many questions.
        change: Changes something on the chain, now and then.
        change_seconds: How often.
    """
    tally, lock = Tally(), threading.Lock()

    def ask(number: int) -> None:
        boot = boots[number % len(boots)]
        try:
            decision = reader.authorize_app(boot)
        except ChainUnavailableError:
            with lock:
                tally.unavailable += 1
            return
        said = isinstance(decision, Granted)
        is_right = truth(boot, decision.block.number) is said
        with lock:
            if is_right:
                tally.right["granted" if said else "denied"] += 1
            else:
                tally.wrong.append(f"{decision} for {boot.compose_hash.hex()}")

    faulty = misbehaving(endpoints, change=change, change_seconds=change_seconds)
    with faulty as faults, ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(ask, range(count)):
            pass
    tally.cut = faults.cut
    return tally


def denial_seconds(reader: KmsAuthReader, boot: BootInfo, deny: Callable[[], None]) -> float:
    """How long after *deny* returned (its block is there) the reader still grants; asked without a pause.

    Raises:
        ChainUnavailableError: It cannot be asked, or grants for longer than 10 s.
    """
    if not isinstance(reader.authorize_app(boot), Granted):
        raise ChainUnavailableError("denial: want a machine that is allowed, got one that is not")
    deny()
    began = time.monotonic()
    while time.monotonic() - began < _DENIAL_SECONDS:
        if not isinstance(reader.authorize_app(boot), Granted):
            return time.monotonic() - began
        time.sleep(0.005)
    raise ChainUnavailableError(f"denial: want it within {_DENIAL_SECONDS:g} s, got grants")
