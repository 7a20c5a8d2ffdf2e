"""Decisions before there is a log: they wait for it, and those for which there is no room are counted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from dstack.errors import KeyReleaseDeniedError
from kms import decisions
from kms.decisions import Question, Subject, keep_with, record_failure


@dataclass
class Kept:
    """Remembers in which order it was told what; implements `Keeper`."""

    told: list[str | int] = field(default_factory=list)

    def keep(self, content: Mapping[str, object], *, must: bool) -> None:
        """One decision, by its request."""
        self.told.append(str(content["request"]))

    def lost(self, count: int) -> None:
        """So many decisions."""
        self.told.append(count)


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """Neither what other tests decided, nor for those after this one."""
    for keeper in (Kept(), None):
        keep_with(keeper)
    yield
    for keeper in (Kept(), None):
        keep_with(keeper)


def decide(number: int) -> None:
    """One refusal."""
    record_failure(Question(Subject.APP, str(number)), KeyReleaseDeniedError("RULE", "no"), None)


@pytest.mark.parametrize(("made", "told"), [(3, ["0", "1", "2"]), (103, [3, *map(str, range(3, 103))])])
def test_early_decisions_are_kept_or_counted(made: int, told: list[str | int]) -> None:
    """The last hundred are kept in their order; the log hears first how many came before these."""
    for number in range(made):
        decide(number)
    kept = Kept()
    keep_with(kept)
    decide(1000)

    assert kept.told == [*told, "1000"]


def test_what_was_counted_is_told_once() -> None:
    """A log that is opened later counts anew."""
    for number in range(101):
        decide(number)
    first, second = Kept(), Kept()
    keep_with(first)
    keep_with(None)
    keep_with(second)

    assert (first.told[0], second.told) == (1, [])


def test_nothing_is_lost_while_a_log_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that is about to wait for a keeper when the keeper comes is told to it."""
    about_to_wait, keeper_comes = threading.Event(), threading.Event()

    class Waiting(deque[tuple[Mapping[str, object], bool]]):
        """Says when somebody looks, and lets him go on when the keeper has come."""

        def __len__(self) -> int:
            if not about_to_wait.is_set():
                about_to_wait.set()
                keeper_comes.wait(1)
            return super().__len__()

    monkeypatch.setattr(decisions._kept, "_early", Waiting())
    kept, deciding = Kept(), threading.Thread(target=decide, args=(1,))
    deciding.start()
    assert about_to_wait.wait(30)
    keep_with(kept)
    keeper_comes.set()
    deciding.join()

    assert kept.told == ["1"]
