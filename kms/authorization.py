"""Appraisal to permit: the contracts are asked every time, about callers and about this KMS itself."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from dstack.attestation.appraise import Appraisal
from dstack.errors import DstackError, KeyReleaseDeniedError, UnavailableError
from dstack.policy import BootInfo, Decision, Denied, Granted, boot_info
from dstack.values import ReportData
from kms.decisions import Question, Subject, record_decision, record_failure, rule_of
from kms.evidence import EvidenceVerifier, QuoteProvider

# How long evidence about ourselves stands before it is fetched and verified anew.
_OWN_EVIDENCE_AGE = timedelta(minutes=5)
_WATCH_SECONDS = 5.0
_RECENT_SECONDS = 60.0
# How long the end of a program waits for the question that is being asked.
_END_SECONDS = 5.0
_NO_REPORT_DATA = ReportData(bytes(ReportData.SIZE))

_log = logging.getLogger("kms")


class ChainAuthority(Protocol):
    """The contracts' answers, each at one block, which the decision names."""

    def authorize_app(self, boot: BootInfo) -> Decision:
        """Whether this app may have its keys.

        Raises:
            ChainUnavailableError: The chain could not be asked.
        """
        ...

    def authorize_kms(self, boot: BootInfo) -> Decision:
        """Whether this KMS may hold root keys.

        Raises:
            ChainUnavailableError: The chain could not be asked.
        """
        ...


@dataclass(frozen=True, slots=True)
class Permit:
    """The chain's yes, together with what was asked and about whom. Made by `authorize` alone."""

    subject: Subject
    boot: BootInfo
    granted: Granted


def authorize(
    question: Question,
    appraise: Callable[[], Appraisal],
    ask: Callable[[BootInfo], Decision],
    *,
    describe: Callable[[Appraisal], BootInfo] = boot_info,
) -> Permit:
    """Appraise, ask the chain, write the line of the log; return only for a yes.

    Upstream asks first and verifies the OS image afterwards (kms.md 2.2). Here the chain is told of verified machines
    alone: a `BootInfo` is never made from a claim, and who only claims an image costs no endpoint a question.

    Args:
        question: Whose trust it is about.
        appraise: Establishes what asks.
        ask: The contracts' answer about that.
        describe: What the contracts are told of it.

    Raises:
        KeyReleaseDeniedError: The chain denies it, or the evidence did not hold; the rule says which.
        UnavailableError: It could not be asked: neither yes nor no.
    """
    appraisal = None
    try:
        appraisal = appraise()
        boot = describe(appraisal)
        decision = ask(boot)
    except UnavailableError as exc:
        record_failure(question, exc, appraisal)
        raise UnavailableError(f"could not ask: {exc}") from exc
    except DstackError as exc:
        record_failure(question, exc, appraisal)
        raise KeyReleaseDeniedError(rule_of(exc), f"{question.subject.refused}: {exc}") from exc
    record_decision(question, appraisal, boot, decision)
    if isinstance(decision, Denied):
        message = f"{question.subject.denied}: {decision.reason}"
        raise KeyReleaseDeniedError(decision.rule.name, message, decision.block.number)
    return Permit(question.subject, boot, decision)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of the last question about ourselves that was answered, and when it was asked (`time.monotonic`)."""

    at: float
    denied: KeyReleaseDeniedError | None


class SelfAuthorization:
    """Whether the chain permits this KMS itself (kms.md 6.4). The decision is never kept, the evidence for minutes."""

    def __init__(self, quotes: QuoteProvider, verifier: EvidenceVerifier, authority: ChainAuthority) -> None:
        self._quotes = quotes
        self._verifier = verifier
        self._authority = authority
        self._lock = threading.Lock()
        self._kept: tuple[datetime, Appraisal] | None = None
        self._remembering = threading.Lock()
        self._outcome: _Outcome | None = None
        self._is_watched = False

    def appraisal(self) -> Appraisal:
        """What this machine is, by its own evidence.

        Raises:
            DstackError: There is no evidence to be had, or it does not hold.
        """
        with self._lock:
            at = self._verifier.clock()
            if self._kept is None or not timedelta() <= at - self._kept[0] < _OWN_EVIDENCE_AGE:
                evidence = self._quotes.evidence(_NO_REPORT_DATA)
                self._kept = (at, self._verifier.appraise(evidence, bound_to=_NO_REPORT_DATA))
            return self._kept[1]

    def require(self, question: Question) -> Permit:
        """Return only if the chain permits this KMS, now.

        Raises:
            KeyReleaseDeniedError: As `authorize`.
            UnavailableError: As `authorize`.
        """
        at = time.monotonic()
        try:
            permit = authorize(question, self.appraisal, self._authority.authorize_kms)
        except KeyReleaseDeniedError as exc:
            self._remember(_Outcome(at, exc))
            raise
        self._remember(_Outcome(at, None))
        return permit

    def _remember(self, outcome: _Outcome) -> None:
        """What was asked later counts: a slow yes from before does not come over a no."""
        with self._remembering:
            if self._outcome is None or self._outcome.at <= outcome.at:
                self._outcome = outcome

    def require_recent(self, question: Question) -> None:
        """Return only if the chain permitted this KMS within the last minute; nobody waits for the chain.

        For what is no secret. Where `watch` does not run, and the first time, this is `require`.

        Raises:
            KeyReleaseDeniedError: The chain denied it when it was last asked.
            UnavailableError: It was not asked within the last minute.
        """
        outcome = self._outcome
        if not self._is_watched or outcome is None:
            self.require(question)
            return
        if time.monotonic() - outcome.at > _RECENT_SECONDS:
            raise UnavailableError(f"could not ask: no answer of the chain within the last {_RECENT_SECONDS:.0f} s")
        if outcome.denied is not None:
            raise KeyReleaseDeniedError(outcome.denied.rule, str(outcome.denied), outcome.denied.block)

    @contextmanager
    def watched(self, also: Callable[[], object] = lambda: None) -> Iterator[None]:
        """For the length of a `with` block ask the chain about this KMS every few seconds, beside everything else.

        Args:
            also: Called as often; must neither raise nor take long.
        """
        end = threading.Event()
        thread = threading.Thread(target=self._watch, args=(end, also), name="self-authorization", daemon=True)
        self._is_watched = True
        thread.start()
        try:
            yield
        finally:
            self._is_watched = False
            end.set()
            thread.join(_END_SECONDS)

    def _watch(self, end: threading.Event, also: Callable[[], object]) -> None:
        while not end.is_set():
            for step in (also, lambda: self.require(Question(Subject.SELF, "watch"))):
                self._watch_by(step)
            end.wait(_WATCH_SECONDS)

    def _watch_by(self, step: Callable[[], object]) -> None:
        try:
            step()
        except DstackError:
            pass  # It is in the log of decisions, and whoever asks is told.
        except Exception:  # noqa: BLE001 - a defect is told, and is not the end of the watch
            _log.exception("watch of this KMS's own authorization: no answer")
