"""What the lines of an event log are, in words: a log itself names only runtime events and ACPI blobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dstack.measurement.acpi import ACPI_NAMES
from dstack.measurement.event_log import Event
from dstack.measurement.firmware import rtmr0_events
from dstack.measurement.linux_boot import rtmr1_events, rtmr2_events
from dstack.measurement.prediction import RUNTIME_INPUTS, Input, PredictedEvent, readable
from dstack.measurement.registers import ZERO_REGISTER
from dstack.measurement.td_hob import PAGE, HobWitness, MemoryRange


@dataclass(frozen=True, slots=True)
class Line:
    """One event with its meaning.

    Attributes:
        event: As logged or predicted.
        label: What it is.
        depends_on: What changes it; empty where that is not known.
        preimage: What was hashed, where that is known.
    """

    event: Event
    label: str
    depends_on: tuple[Input, ...]
    preimage: bytes | None = None


def labelled(events: Sequence[Event]) -> tuple[Line, ...]:
    """Say of each event of a log what it is, by register, place and type.

    An event that is not where the known firmware has it is labelled by its type alone.
    """
    counts = [0, 0, 0, 0]
    lines = []
    for event in events:
        lines.append(_line(event, counts[event.imr]))
        counts[event.imr] += 1
    return tuple(lines)


def _line(event: Event, place: int) -> Line:
    if event.runtime is not None:
        return Line(event, readable(event.name), RUNTIME_INPUTS.get(event.name, (Input.APP,)))
    known = _known()[event.imr]
    if place < len(known) and known[place].event.event_type == event.event_type:
        return Line(event, known[place].label, known[place].depends_on)
    name = f" {readable(event.name)}" if event.name else ""
    return Line(event, f"unexpected event of type {event.event_type:#x}{name}", ())


@cache
def _known() -> dict[int, tuple[PredictedEvent, ...]]:
    """The order of events of the known firmware; only labels, types and inputs of these are used."""
    witness = HobWitness(0, (MemoryRange(0, PAGE),))
    zero = ZERO_REGISTER
    return {
        0: rtmr0_events(witness, 2 * PAGE, dict.fromkeys(ACPI_NAMES, zero)),
        1: rtmr1_events(zero),
        2: rtmr2_events(zero, zero),
        3: (),
    }
