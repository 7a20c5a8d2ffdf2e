"""UpgradeOperator's times, without a chain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dstack.chain.reverts import ENUMS
from dstack.policy.timelock import COOL_DOWN, WINDOW, Entry, Stage, Timetable, calendar, has_ended, next_freeze_at

START = datetime(2026, 12, 1, tzinfo=UTC)
READY = START + timedelta(hours=48)
EXPIRY = READY + WINDOW
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("at", "stage"),
    [
        (READY - SECOND, Stage.WAITING),
        (READY, Stage.READY),
        (READY + SECOND, Stage.READY),
        (EXPIRY - SECOND, Stage.READY),
        (EXPIRY, Stage.EXPIRED),
        (EXPIRY + SECOND, Stage.EXPIRED),
    ],
)
def test_a_proposal_stands_where_its_times_put_it(at: datetime, stage: Stage) -> None:
    """Ready begins at `ready_at` and ends before `expires_at`, to the second."""
    assert Timetable(START, READY, EXPIRY).stage(at) is stage


def test_what_happened_counts_from_its_moment_on() -> None:
    """Executed, cancelled and rolled back hold from their second on, and expiry changes none of them."""
    executed = Timetable(START, READY, EXPIRY, executed_at=READY)
    cancelled = Timetable(START, READY, EXPIRY, cancelled_at=START + SECOND)
    undone = Timetable(START, READY, EXPIRY, executed_at=READY, rolled_back_at=READY + SECOND)

    assert [executed.stage(at) for at in (READY - SECOND, READY, EXPIRY)] == [
        Stage.WAITING,
        Stage.EXECUTED,
        Stage.EXECUTED,
    ]
    assert [cancelled.stage(at) for at in (START, START + SECOND, EXPIRY)] == [
        Stage.WAITING,
        Stage.CANCELLED,
        Stage.CANCELLED,
    ]
    assert [undone.stage(at) for at in (READY, READY + SECOND)] == [Stage.EXECUTED, Stage.ROLLED_BACK]


def test_the_stages_are_the_contracts_words() -> None:
    """Every state of the contract but Unset is a stage, by the same name."""
    assert {stage.value for stage in Stage} == set(ENUMS["enum IUpgradeOperator.State"]) - {"Unset"}


def test_a_rollback_closes_a_window_after_the_execution() -> None:
    """Without an execution there is nothing to roll back."""
    assert Timetable(START, READY, EXPIRY).rollback_closes_at() is None
    assert Timetable(START, READY, EXPIRY, executed_at=READY).rollback_closes_at() == READY + WINDOW


def test_the_calendar_is_in_order_and_bounded() -> None:
    """What is past is left out, and so is what comes after the bound."""
    entries = [Entry(READY, "b"), Entry(READY, "a"), Entry(START, "past"), Entry(EXPIRY, "late")]

    assert calendar(entries, since=START) == (Entry(READY, "a"), Entry(READY, "b"), Entry(EXPIRY, "late"))
    assert calendar(entries, since=START, until=READY) == (Entry(READY, "a"), Entry(READY, "b"))


def test_an_end_is_over_in_its_own_second() -> None:
    """None never ends."""
    assert [has_ended(READY, at) for at in (READY - SECOND, READY)] == [False, True]
    assert not has_ended(None, EXPIRY)


def test_a_freeze_can_follow_after_the_cool_down() -> None:
    """An app that was never frozen can be frozen now."""
    assert next_freeze_at(None, START) == START
    assert next_freeze_at(READY, START) == READY + COOL_DOWN
    assert next_freeze_at(START - WINDOW, READY) == READY
