"""UpgradeOperator's times: where a proposal stands at any moment, and what will happen by itself.

The contract decides; this explains its answer and looks ahead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

MIN_DELAY = timedelta(hours=48)
WINDOW = timedelta(days=14)
COOL_DOWN = timedelta(days=7)
FORCED_DELAY = timedelta(days=7)


class Stage(Enum):
    """Where a proposal stands; the value is the contract's word for it."""

    WAITING = "Waiting"
    READY = "Ready"
    EXECUTED = "Executed"
    CANCELLED = "Cancelled"
    EXPIRED = "Expired"
    ROLLED_BACK = "RolledBack"


@dataclass(frozen=True, slots=True)
class Timetable:
    """What happened to a proposal, and when; None for what did not happen."""

    proposed_at: datetime
    ready_at: datetime
    expires_at: datetime
    executed_at: datetime | None = None
    cancelled_at: datetime | None = None
    rolled_back_at: datetime | None = None

    def stage(self, at: datetime) -> Stage:
        """Where it stands at *at*, from what had happened up to then.

        A proposal is Ready from `ready_at` on, that second included, and Expired from `expires_at` on.
        """
        if _happened(self.rolled_back_at, at):
            return Stage.ROLLED_BACK
        if _happened(self.executed_at, at):
            return Stage.EXECUTED
        if _happened(self.cancelled_at, at):
            return Stage.CANCELLED
        if at < self.ready_at:
            return Stage.WAITING
        return Stage.READY if at < self.expires_at else Stage.EXPIRED

    def rollback_closes_at(self) -> datetime | None:
        """Before when a staged rollback can be run; None if the proposal was not executed."""
        return None if self.executed_at is None else self.executed_at + WINDOW


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that will be so from `at` on, if nobody acts."""

    at: datetime
    sentence: str


def calendar(entries: Iterable[Entry], *, since: datetime, until: datetime | None = None) -> tuple[Entry, ...]:
    """The entries after *since* and up to *until*, soonest first."""
    wanted = (entry for entry in entries if entry.at > since and (until is None or entry.at <= until))
    return tuple(sorted(wanted, key=lambda entry: (entry.at, entry.sentence)))


def has_ended(ends_at: datetime | None, at: datetime) -> bool:
    """Whether what ends at *ends_at* (None for never) is over at *at*; it is, in that very second."""
    return ends_at is not None and at >= ends_at


def next_freeze_at(frozen_until: datetime | None, at: datetime) -> datetime:
    """From when on the deny path can freeze an app (again)."""
    return at if frozen_until is None else max(at, frozen_until + COOL_DOWN)


def _happened(moment: datetime | None, at: datetime) -> bool:
    return moment is not None and moment <= at
