"""The decisions: one JSON line for each time this KMS was asked for trust, to the logger `kms.decisions` and a keeper.

A line says who, what, by which rule, in the state of which block, on what evidence, and which root ends its chain. It
never holds a key, and nothing of a message that might be one. About itself this KMS asks all the time: that is a line
when the answer or its block changes, and once a minute.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter

from dstack.attestation.appraise import Appraisal
from dstack.errors import (
    AppraisalError,
    DstackError,
    InputError,
    KeyReleaseDeniedError,
    QuoteUntrustedError,
    UnavailableError,
)
from dstack.policy import BlockRef, BootInfo, Decision, Denied, Rule
from dstack.policy.decision import NO_BLOCK

EVIDENCE_MISSING = "EVIDENCE_MISSING"

_RULES: tuple[tuple[type[DstackError], str], ...] = (
    (QuoteUntrustedError, "QUOTE_UNTRUSTED"),
    (AppraisalError, "APPRAISAL"),
    (InputError, "EVIDENCE_MALFORMED"),
    (UnavailableError, "COULD_NOT_ASK"),
)

# What is counted by its name; every other rule is counted as one.
_COUNTED_RULES = frozenset({"", EVIDENCE_MISSING, *(rule for _, rule in _RULES), *(rule.name for rule in Rule)})

METRICS = CollectorRegistry()
DECISIONS = Counter(
    "dstack_kms_decisions",
    "Decisions, by whose trust was asked about, what came of it, and the rule of a refusal.",
    ("subject", "outcome", "rule"),
    registry=METRICS,
)

_REPEAT_SECONDS = 60.0
_EARLY_LIMIT = 100

_log = logging.getLogger("kms.decisions")


class Subject(Enum):
    """Whose trust is asked about: the name in the log, and upstream's words before a reason (kms.md 2.2)."""

    APP = ("app", "App not allowed", "Boot denied")
    SELF = ("self", "KMS self authorization failed", "KMS is not allowed")
    BOOTSTRAP = ("bootstrap", "KMS is not allowed to bootstrap", "boot denied")
    CERTIFICATE = ("certificate", "Certificate not allowed", "Boot denied")
    KMS = ("kms", "KMS not allowed", "Boot denied")
    SOURCE = ("source", "Source KMS is not allowed", "boot denied")

    def __init__(self, label: str, refused: str, denied: str) -> None:
        self.label = label
        self.refused = refused
        self.denied = f"{refused}: {denied}"


@dataclass(frozen=True, slots=True)
class Question:
    """Whose trust was asked about, and in which request."""

    subject: Subject
    request_id: str


def rule_of(error: DstackError) -> str:
    """The rule by which *error* refuses: the contracts' where they decided, ours where evidence did not get so far."""
    if isinstance(error, KeyReleaseDeniedError):
        return error.rule
    return next((rule for kind, rule in _RULES if isinstance(error, kind)), type(error).__name__)


class Keeper(Protocol):
    """Keeps decisions, where somebody may look for them years later."""

    def keep(self, content: Mapping[str, object], *, must: bool) -> None:
        """Keep a decision; with *must*, return only when it is kept.

        Raises:
            UnavailableError: It must be, and could not be.
        """
        ...

    def lost(self, count: int) -> None:
        """Remember that so many decisions could not be kept; whatever is kept next says so."""
        ...


class _Kept:
    """Gives every decision to the keeper; the last hundred before there is one wait for it, others are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keeper: Keeper | None = None
        self._early: deque[tuple[Mapping[str, object], bool]] = deque(maxlen=_EARLY_LIMIT)
        self._lost = 0

    def use(self, keeper: Keeper | None) -> None:
        with self._lock:
            self._keeper = keeper
            if keeper is not None and self._lost:
                keeper.lost(self._lost)
                self._lost = 0
            while keeper is not None and self._early:
                content, must = self._early.popleft()
                keeper.keep(content, must=must)

    def keep(self, content: Mapping[str, object], *, must: bool) -> None:
        with self._lock:
            keeper = self._keeper
            if keeper is None:
                self._lost += len(self._early) == _EARLY_LIMIT
                self._early.append((content, must))
        if keeper is not None:
            keeper.keep(content, must=must)


_kept = _Kept()


def keep_with(keeper: Keeper | None) -> None:
    """From now on *keeper* gets every decision, first those made since the start; None for nobody.

    Raises:
        UnavailableError: A decision that must be kept could not be.
    """
    _kept.use(keeper)


class _OwnRepeats:
    """What was last said about this KMS itself; said again only when it changes, at another block or after a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[object, ...] = ()
        self._at = 0.0

    def is_repeat(self, question: Question, outcome: dict[str, object]) -> bool:
        if question.subject is not Subject.SELF:
            return False
        with self._lock:
            return tuple(outcome.items()) == self._last and time.monotonic() - self._at < _REPEAT_SECONDS

    def remember(self, question: Question, outcome: dict[str, object]) -> None:
        if question.subject is Subject.SELF:
            with self._lock:
                self._last, self._at = tuple(outcome.items()), time.monotonic()


_own_repeats = _OwnRepeats()


def record_decision(question: Question, appraisal: Appraisal, boot: BootInfo, decision: Decision) -> None:
    """Write the line of a decision that the chain made."""
    denied = {}
    if isinstance(decision, Denied):
        denied = {"rule": decision.rule.name, "reason": decision.reason, "got": decision.got}
    outcome = {"decision": "denied" if denied else "granted", **denied, **_block(decision.block), **_who(boot)}
    _write(question, outcome, appraisal)


def record_failure(question: Question, error: DstackError, appraisal: Appraisal | None) -> None:
    """Write the line of a question that the chain did not decide: refused before it was asked, or not to be asked."""
    outcome = "unavailable" if isinstance(error, UnavailableError) else "refused"
    _write(question, {"decision": outcome, "rule": rule_of(error), "reason": str(error)}, appraisal)


def _write(question: Question, outcome: dict[str, object], appraisal: Appraisal | None) -> None:
    _count(question.subject, outcome)
    if _own_repeats.is_repeat(question, outcome):
        return
    asked = {
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "subject": question.subject.label,
        "request": question.request_id,
    }
    line = {**asked, **outcome, **({} if appraisal is None else _evidence(appraisal))}
    # What must be kept is kept before it is told, and before anything is released.
    _kept.keep(line, must=outcome["decision"] == "granted")
    _log.info(json.dumps(line))
    _own_repeats.remember(question, outcome)


def _count(subject: Subject, outcome: dict[str, object]) -> None:
    """Also what is no line of its own. Rules are names of ours: what somebody sent is never a label."""
    rule = str(outcome.get("rule", ""))
    DECISIONS.labels(subject.label, str(outcome["decision"]), rule if rule in _COUNTED_RULES else Rule.OTHER.name).inc()


def _block(block: BlockRef) -> dict[str, object]:
    if block == NO_BLOCK:
        return {"block": None, "block_hash": None}
    return {"block": block.number, "block_hash": block.hash.hex()}


def _who(boot: BootInfo) -> dict[str, object]:
    return {
        "app_id": boot.app_id.hex(),
        "instance_id": boot.instance_id.hex() if boot.instance_id else "",
        "compose_hash": boot.compose_hash.hex(),
        "device_id": boot.device_id.hex(),
        "os_image_hash": boot.os_image_hash.hex(),
        "mr_aggregated": boot.mr_aggregated.hex(),
        "tcb_status": boot.tcb_status,
    }


def _evidence(appraisal: Appraisal) -> dict[str, object]:
    verified = appraisal.verified
    return {
        "evidence": hashlib.sha256(verified.quote.signed).hexdigest(),
        "root": verified.root.fingerprint,
        "simulated": verified.root.simulated,
        "acpi_source": appraisal.acpi_source.value,
        "acpi_tables_verified": appraisal.acpi_tables_verified,
    }
