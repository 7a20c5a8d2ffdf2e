"""Long work that strangers ask for: one at a time, a few wait, the next are told to come again."""

from __future__ import annotations

import queue
import threading

import pytest

from dstack.errors import ImageUnavailableError
from kms import turns as turns_module
from kms.turns import KeptInTurn, Turns


def test_one_works_a_few_wait_and_others_are_turned_away() -> None:
    """Of seven that come, one is at it, two wait for their turns, and four are told at once."""
    turns = Turns("downloads", waiting=2, seconds=60)
    end, seen, turned_away = threading.Event(), [], queue.Queue[str]()

    def work() -> None:
        try:
            with turns.turn():
                seen.append("begin")
                end.wait(60)
                seen.append("end")
        except ImageUnavailableError as exc:
            turned_away.put(str(exc))

    threads = [threading.Thread(target=work) for _ in range(7)]
    for thread in threads:
        thread.start()
    told = [turned_away.get(timeout=60) for _ in range(4)]
    before = list(seen)
    end.set()
    for thread in threads:
        thread.join(60)

    assert (told, turned_away.empty()) == (["downloads: too many wait already, try again later"] * 4, True)
    assert (before, seen) == (["begin"], ["begin", "end"] * 3)


def test_nobody_waits_for_ever() -> None:
    """Who had no turn in time is told so, and leaves his place to others."""
    turns = Turns("downloads", waiting=1, seconds=0.01)
    refused = []

    def wait() -> None:
        try:
            with turns.turn():
                refused.append("let in")
        except ImageUnavailableError as exc:
            refused.append(str(exc))

    with turns.turn():
        for _ in range(2):
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join(60)

    assert refused == ["downloads: no turn within 0.01 s, try again later"] * 2


def test_a_failure_leaves_the_place_free() -> None:
    """Whatever was raised in there, the next one has a turn."""
    turns = Turns("downloads", waiting=0, seconds=0.01)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), turns.turn():
            raise ZeroDivisionError

    with turns.turn():
        pass


def test_what_was_worked_out_is_kept_and_failures_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each key; of the keys that strangers choose those used last stay."""
    monkeypatch.setattr(turns_module, "MOST_KEPT", 2)
    kept, made = KeptInTurn[int, str]("shapes"), []

    def make(key: int) -> str:
        made.append(key)
        return str(key // key)

    with pytest.raises(ZeroDivisionError):
        kept.get(0, lambda: make(0))
    answers = [kept.get(key, lambda key=key: make(key)) for key in (1, 2, 1, 3, 1, 2)]  # type: ignore[misc]

    assert answers == ["1"] * 6
    assert made == [0, 1, 2, 3, 2]
