"""A checklist: what came of each item of a verification, so that one failure does not hide the next.

The items are the numbered steps of `docs/verification-steps.md`. The same checks run in two ways: strict, where the
first that fails raises, and complete, where every outcome is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from dstack.errors import InputError, QuoteUntrustedError, RefusedError

_T = TypeVar("_T")

TITLES = {
    1: "the quote's header",
    2: "lengths, certification types, padding",
    3: "the root of trust",
    4: "revocation lists",
    5: "TCB info and QE identity are genuine",
    6: "TCB info and QE identity are of this platform",
    7: "certificate chain of the platform",
    8: "the platform it names",
    9: "signature of the QE report",
    10: "the QE report binds the attestation key",
    11: "the quoting enclave",
    12: "signature of the quote",
    13: "TCB levels, by both verifiers",
    14: "TD attributes",
    15: "TDX module, XFAM, service TD",
    16: "SGX enclave",
    17: "report data",
    18: "measurements",
    19: "policy on status, advisories and numbers",
    20: "device id",
}


class Outcome(Enum):
    """What came of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: the item it belongs to, what was looked at, what came of it, and what was seen or why."""

    item: int
    name: str
    outcome: Outcome
    detail: str


class Ledger:
    """Runs checks and writes down what came of each.

    Args:
        strict: Let the first failure raise, and write nothing down.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._checks: list[Check] = []

    @property
    def checks(self) -> tuple[Check, ...]:
        """Everything so far, by item."""
        return tuple(sorted(self._checks, key=lambda check: check.item))

    def run(self, item: int, check: Callable[[], _T], *, seen: Callable[[_T], str] | str, name: str = "") -> _T | None:
        """Run one check.

        Args:
            item: Its number; an error that carries a step of its own is written under that.
            check: Returns what later checks need, or raises.
            seen: What is written when it passes.
            name: What is looked at, if not all that the item's title says.

        Returns:
            What *check* returned; None if it failed, which happens only where failures do not raise.
        """
        if self._strict:
            return check()
        try:
            value = check()
        except (InputError, RefusedError) as exc:
            self._add(_step_of(exc, item), name, Outcome.FAILED, _words(exc))
            return None
        self._add(item, name, Outcome.PASSED, seen if isinstance(seen, str) else seen(value))
        return value

    def skip(self, items: Iterable[int], why: str, *, name: str = "") -> None:
        """Write that checks were not made."""
        if not self._strict:
            for item in items:
                self._add(item, name, Outcome.SKIPPED, why)

    def passed(self, item: int, detail: str, *, name: str = "") -> None:
        """Write that something was seen to hold."""
        if not self._strict:
            self._add(item, name, Outcome.PASSED, detail)

    def has(self, item: int) -> bool:
        """Whether anything was written about *item*."""
        return any(check.item == item for check in self._checks)

    def failed(self, *items: int) -> bool:
        """Whether one of *items* failed."""
        return any(check.outcome is Outcome.FAILED and check.item in items for check in self._checks)

    def _add(self, item: int, name: str, outcome: Outcome, detail: str) -> None:
        self._checks.append(Check(item, name or TITLES[item], outcome, detail))


def _step_of(error: Exception, item: int) -> int:
    return error.step if isinstance(error, QuoteUntrustedError) else item


def _words(error: Exception) -> str:
    """The error's sentence without the step, which stands beside it."""
    return str(error).removeprefix(f"step {_step_of(error, 0)}: ")
