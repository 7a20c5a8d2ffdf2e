"""Why a handover was refused, in sentences: what differs, where it comes from, and when it may become different."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from dstack.attestation.evidence import Evidence, parse_evidence
from dstack.chain.action_data import AppVersion, parse_action_data
from dstack.chain.governed import Governed
from dstack.chain.operator import Action, Kind
from dstack.errors import DstackError, InputError, KeyReleaseDeniedError
from dstack.measurement.compose import compose_hash
from dstack.measurement.event_log import runtime_event_digest
from dstack.measurement.rtmr3 import SYSTEM_READY
from dstack.policy.decision import Rule
from dstack.policy.timelock import Stage
from dstack.values import ComposeHash

_REGISTERS = {
    "MRTD": "the firmware",
    "RTMR0": "the shape of the VM: CPUs, memory, ACPI tables, firmware settings",
    "RTMR1": "the kernel",
    "RTMR2": "the kernel's command line or the initrd",
}
_RULES = {
    Rule.OS_IMAGE: "KmsAuth does not list the OS image that the machine booted",
    Rule.TCB_STATUS: "the app demands an up-to-date platform, and this one is not",
    Rule.DEVICE: "the app lists the machines that it may run on, and this one is not among them",
    Rule.APP_FROZEN: "owner or guardian froze the app: it gets nothing for up to 7 days",
    Rule.APP_REGISTERED: "KmsAuth does not know this app",
    Rule.NOT_GOVERNED: "UpgradeOperator owns not both of KmsAuth and the app",
    Rule.NOT_ANNOUNCED: "no proposal about KmsAuth or the app was ever executed",
    Rule.REGISTERS: "the version does not list the exact registers of this machine",
}


_RULES_OF_VERSIONS = frozenset(rule.name for rule in (Rule.COMPOSE_HASH, Rule.REGISTERS, Rule.NOT_ANNOUNCED))


@dataclass(frozen=True, slots=True)
class When:
    """What would let a node through; *ready_at* is when it can be executed."""

    proposal: str
    stage: str
    ready_at: datetime
    expires_at: datetime

    def sentence(self) -> str:
        """For people."""
        if self.stage == Stage.READY.value:
            return f"proposal 0x{self.proposal} allows it: anybody may execute it now, until {_clock(self.expires_at)}"
        return (
            f"proposal 0x{self.proposal} allows it: anybody may execute it from {_clock(self.ready_at)} "
            f"to {_clock(self.expires_at)}"
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a proposal must hold to let a node through: a version with this compose hash, or (None) the genesis."""

    app: str
    compose_hash: ComposeHash | None

    def is_in(self, action: Action) -> bool:
        """Whether *action* grants it."""
        if action.target.lower() != self.app.lower():
            return False
        if self.compose_hash is None:
            return action.kind is Kind.GENESIS
        if action.kind is Kind.COMPOSE_HASH and bytes(action.data) == self.compose_hash:
            return True
        meaning = parse_action_data(action.kind, action.data)
        return isinstance(meaning, AppVersion) and meaning.compose_hash == self.compose_hash


def explain(error: DstackError, blob: bytes | None, app_compose: bytes | None) -> Iterator[str]:
    """What lies behind a refusal.

    Args:
        error: As a node answered.
        blob: Evidence of the node that was refused, if there is any.
        app_compose: The app-compose.json that this node is meant to run, if it is known.
    """
    evidence = _evidence(blob)
    text = str(error)
    if isinstance(error, KeyReleaseDeniedError):
        if error.rule == Rule.COMPOSE_HASH.name and evidence is not None:
            yield from _compose(evidence, app_compose)
        elif error.rule in Rule.__members__ and Rule[error.rule] in _RULES:
            yield _RULES[Rule[error.rule]]
    elif "RTMR3: want" in text and evidence is not None:
        yield from _replay(evidence)
    for name, what in _REGISTERS.items():
        if f"{name}: want" in text:
            yield f"{name} differs: {what} is not that of the OS image that the machine names"
    if "waits here" in text:
        yield "the new node was started anew, or took too long: run the command again"
    if "does not descend" in text:
        yield "what the new node holds would be lost: only a node that got it from there can hand over to it"
    if "step " in text:
        yield "the numbers of the steps are those of docs/verification-steps.md"


def what_would_help(error: DstackError, app: str, blob: bytes | None) -> Wanted | None:
    """Which action of a proposal about *app* would change a refusal of the node that *blob* is evidence of.

    Returns:
        None where none would, or it cannot be said.
    """
    evidence = _evidence(blob)
    if evidence is None:
        return None
    if "genesis: want" in str(error):
        return Wanted(app, None)
    measured = _payload(evidence, "compose-hash")
    if not isinstance(error, KeyReleaseDeniedError) or error.rule not in _RULES_OF_VERSIONS:
        return None
    if measured is None or len(measured) != ComposeHash.SIZE:
        return None
    return Wanted(app, ComposeHash(measured))


def when_allowed(governed: Governed, wanted: Wanted) -> tuple[When, ...]:
    """Pending proposals that hold what is *wanted*, soonest first."""
    found = [known for known in governed.pending() if any(map(wanted.is_in, known.actions))]
    return tuple(
        When(
            known.id.hex(),
            known.timetable.stage(governed.at).value,
            known.proposal.ready_at,
            known.proposal.expires_at,
        )
        for known in sorted(found, key=lambda known: known.proposal.ready_at)
    )


def _compose(evidence: Evidence, app_compose: bytes | None) -> Iterator[str]:
    measured = _payload(evidence, "compose-hash")
    if measured is None:
        yield "RTMR3 holds no compose-hash"
        return
    if app_compose is None:
        yield f"RTMR3 differs at compose-hash: the machine measured {measured.hex()}, which no version in force names"
        return
    wanted = compose_hash(app_compose)
    if measured == wanted:
        yield f"the machine runs your file, compose hash {wanted.hex()}; no version in force names it"
    else:
        yield f"RTMR3 differs at compose-hash: your file gives {wanted.hex()}, the machine measured {measured.hex()}"


def _replay(evidence: Evidence) -> Iterator[str]:
    """Find the event whose digest in the log is not that of its name and payload."""
    for event in evidence.event_log:
        runtime = event.runtime
        if runtime is not None and event.digest and event.digest != runtime_event_digest(runtime):
            yield f"RTMR3 differs at {runtime.name}: the log's digest is not that of its payload"
            return
    names = [event.name for event in evidence.runtime_events]
    missing = [name for name in ("app-id", "compose-hash", "instance-id", SYSTEM_READY) if name not in names]
    if missing:
        yield f"RTMR3 differs at {missing[0]}: the log does not hold it"
    else:
        yield f"RTMR3 differs: after {names[-1]!r} more was extended than the log shows, or an event was changed"


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _payload(evidence: Evidence, name: str) -> bytes | None:
    return next((event.payload for event in evidence.runtime_events if event.name == name), None)


def _evidence(blob: bytes | None) -> Evidence | None:
    try:
        return parse_evidence(blob) if blob is not None else None
    except InputError:
        return None
