"""Event logs: the list behind the registers (guest.md 3.1, measurement.md 1).

Boot events (RTMR0 to RTMR2) come with their digest. Runtime events (RTMR3) come with a name and a payload, and their
digest is always computed from these: what a log says there is not believed, newer guests leave it empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha384

import rfc8785

from dstack.errors import EventLogMalformedError
from dstack.measurement.registers import replay
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Register

RUNTIME_EVENT_TYPE = 0x08000001
RUNTIME_IMR = 3
MAX_LOG_BYTES = 1024 * 1024
MAX_EVENTS = 4096

_MAX_U32 = 0xFFFF_FFFF
_MEMBERS = frozenset({"imr", "event_type", "digest", "event", "event_payload", "version", "preimage"})


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """Something dstack or an app extends into RTMR3. *version* 1 or 2 selects how it is hashed."""

    name: str
    payload: bytes
    version: int = 1

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise EventLogMalformedError(f"event {self.name[:80]!r}: want version 1 or 2, got {self.version}")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of an event log.

    An event of RTMR3 that is not a runtime event is refused: with one, a log could show the digest of a boot event
    without its name, and so hide what the machine was started with.

    Attributes:
        imr: The RTMR it was extended into, 0 to 3.
        event_type: TCG's or dstack's number, 32 bits.
        digest: What was extended, at most 48 bytes; may be empty for a runtime event only.
        name: Empty for boot events, apart from the three ACPI ones.
        payload: For boot events a description that nothing measures; may be stripped.
        version: Of the digest of a runtime event.
        preimage: What a version 2 digest was made of.
    """

    imr: int
    event_type: int
    digest: bytes
    name: str
    payload: bytes
    version: int = 1
    preimage: bytes | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.imr <= RUNTIME_IMR:
            raise EventLogMalformedError(f"imr: want 0 to {RUNTIME_IMR}, got {self.imr}")
        if not 0 <= self.event_type <= _MAX_U32:
            raise EventLogMalformedError(f"event_type: want 32 bits, got {self.event_type}")
        if len(self.digest) > Register.SIZE:
            raise EventLogMalformedError(f"digest: want at most {Register.SIZE} bytes, got {len(self.digest)}")
        if (self.imr == RUNTIME_IMR) != (self.event_type == RUNTIME_EVENT_TYPE):
            raise EventLogMalformedError(f"event_type: {self.event_type:#x} does not belong in RTMR{self.imr}")
        if self.imr == RUNTIME_IMR:
            _check_preimage(self)
        elif not self.digest or self.version != 1:
            raise EventLogMalformedError(f"event of RTMR{self.imr}: want a digest and version 1")

    @property
    def runtime(self) -> RuntimeEvent | None:
        """The runtime event this line is about, if it is one."""
        return RuntimeEvent(self.name, self.payload, self.version) if self.imr == RUNTIME_IMR else None

    @property
    def extended(self) -> bytes:
        """The digest that the register got: computed for runtime events, taken from the log for others."""
        runtime = self.runtime
        return self.digest if runtime is None else runtime_event_digest(runtime)


def runtime_event_preimage(event: RuntimeEvent) -> bytes:
    """Give the bytes whose SHA-384 is extended into RTMR3.

    Version 1 joins type, name and payload with colons, so a name with a colon reads two ways; version 2 is RFC 8785
    JSON and has one reading.

    Raises:
        EventLogMalformedError: The name holds a lone surrogate.
    """
    try:
        if event.version == 1:
            return b":".join((RUNTIME_EVENT_TYPE.to_bytes(4, "little"), event.name.encode(), event.payload))
        return rfc8785.dumps({"name": event.name, "payload": event.payload.hex(), "type": RUNTIME_EVENT_TYPE})
    except (UnicodeEncodeError, rfc8785.CanonicalizationError) as exc:
        raise EventLogMalformedError("event name: want Unicode text") from exc


def runtime_event_digest(event: RuntimeEvent) -> Register:
    """Give the 48 bytes that a runtime event extends into RTMR3."""
    return Register(sha384(runtime_event_preimage(event)).digest())


def logged(event: RuntimeEvent) -> Event:
    """Write *event* as a line of a log, with its digest."""
    preimage = runtime_event_preimage(event) if event.version != 1 else None
    digest = runtime_event_digest(event)
    return Event(RUNTIME_IMR, RUNTIME_EVENT_TYPE, digest, event.name, event.payload, event.version, preimage)


def parse_event_log(text: str | bytes) -> tuple[Event, ...]:
    """Read a JSON event log, full or stripped.

    Says nothing of whether a register has these events: replay it and compare with a quote.

    Args:
        text: A JSON array, at most 1 MiB and 4096 events.

    Raises:
        EventLogMalformedError: It is something else.
    """
    value = parse_json(text, what="event log", limit=MAX_LOG_BYTES, error=EventLogMalformedError)
    if not isinstance(value, list):
        raise EventLogMalformedError("event log: want a JSON array of events")
    if len(value) > MAX_EVENTS:
        raise EventLogMalformedError(f"event log: want at most {MAX_EVENTS} events, got {len(value)}")
    return tuple(_parse_event(item, at) for at, item in enumerate(value))


def serialise_event_log(events: Iterable[Event]) -> str:
    """Write a log as compact JSON, in the spelling that dstack's clients read.

    The digest of every runtime event is filled in, so that clients which believe it replay RTMR3 correctly.
    """
    return json.dumps([_event_members(event) for event in events], ensure_ascii=False, separators=(",", ":"))


def runtime_events(events: Iterable[Event]) -> tuple[RuntimeEvent, ...]:
    """Keep what was extended into RTMR3, in order."""
    return tuple(event.runtime for event in events if event.runtime is not None)


def replay_event_log(events: Sequence[Event]) -> dict[int, Register]:
    """Compute RTMR0 to RTMR3 from a log.

    A stripped log gives the right RTMR3 only: it lacks boot events.
    """
    return {imr: replay(event.extended for event in events if event.imr == imr) for imr in range(RUNTIME_IMR + 1)}


def _check_preimage(event: Event) -> None:
    """A version 2 event carries what was hashed, and it is what its name and payload say (measurement.md 1)."""
    expected = RuntimeEvent(event.name, event.payload, event.version)
    if event.version == 1:
        if event.preimage is not None:
            raise EventLogMalformedError(f"event {event.name[:80]!r}: version 1 has no preimage")
        return
    if event.preimage != runtime_event_preimage(expected):
        raise EventLogMalformedError(f"event {event.name[:80]!r}: preimage is missing or of another event")
    if event.digest and event.digest != runtime_event_digest(expected):
        raise EventLogMalformedError(f"event {event.name[:80]!r}: digest is not that of its preimage")


def _parse_event(value: object, at: int) -> Event:
    members = Members.of(value, what=f"event {at}", error=EventLogMalformedError)
    # An unknown member could change what a digest means, as `version` did.
    members.refuse_others(_MEMBERS)
    imr = members.integer("imr", maximum=RUNTIME_IMR)
    event_type = members.integer("event_type", maximum=_MAX_U32)
    digest = members.hexadecimal("digest", "")
    name = members.text("event")
    payload = members.hexadecimal("event_payload")
    version = members.integer("version", maximum=2) if members.has("version") else 1
    preimage = members.hexadecimal("preimage") if members.has("preimage") else None
    try:
        return Event(imr, event_type, digest, name, payload, version, preimage)
    except EventLogMalformedError as exc:
        raise EventLogMalformedError(f"{members.what}: {exc}") from exc


def _event_members(event: Event) -> dict[str, object]:
    members: dict[str, object] = {
        "imr": event.imr,
        "event_type": event.event_type,
        "digest": event.extended.hex(),
        "event": event.name,
        "event_payload": event.payload.hex(),
    }
    if event.version != 1 and event.preimage is not None:
        members |= {"version": event.version, "preimage": event.preimage.hex()}
    return members
