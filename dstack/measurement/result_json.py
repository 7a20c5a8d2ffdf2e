"""Measurements as JSON: what `dstack measure --json` writes and `dstack explain` reads."""

from __future__ import annotations

from dataclasses import dataclass

from dstack.errors import EventLogMalformedError, MeasurementMalformedError
from dstack.measurement.event_log import MAX_EVENTS, RUNTIME_EVENT_TYPE, RUNTIME_IMR, Event, RuntimeEvent, logged
from dstack.measurement.labels import Line
from dstack.measurement.prediction import Input, PredictedEvent
from dstack.measurement.result import REGISTERS, Measurement
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Register

MAX_RESULT = 8 * 1024 * 1024
_MAX_U32 = 2**32 - 1
_WHAT = "measurement"


@dataclass(frozen=True, slots=True)
class StatedMeasurement:
    """A measurement that was read: its registers, and its events with their meaning."""

    registers: dict[str, Register]
    lines: tuple[Line, ...]
    acpi_from_log: bool


def measurement_facts(measurement: Measurement) -> dict[str, object]:
    """Give a measurement as values that JSON can carry; bytes are hexadecimal."""
    acpi = measurement.acpi
    source = None if acpi is None else {"source": acpi.source.value, "detail": acpi.detail}
    return {
        "registers": {name: register.hex() for name, register in measurement.registers.items()},
        "not_computable": dict(measurement.missing),
        "image_origin": measurement.image_origin.value,
        "acpi": source,
        "acpi_tables_verified": measurement.acpi_tables_verified,
        "identities": {name: raw.hex() for name, raw in measurement.identities.items()},
        "events": [event_facts(predicted) for predicted in measurement.events],
    }


def event_facts(predicted: PredictedEvent) -> dict[str, object]:
    """Give one predicted event as values that JSON can carry."""
    event = predicted.event
    facts: dict[str, object] = {
        "imr": event.imr,
        "event_type": event.event_type,
        "digest": event.extended.hex(),
        "event": event.name,
        "event_payload": event.payload.hex(),
        "label": predicted.label,
        "origin": predicted.origin.value,
        "depends_on": [each.value for each in predicted.depends_on],
    }
    if event.version != 1:
        facts["version"] = event.version
    if predicted.preimage is not None:
        facts["preimage"] = predicted.preimage.hex()
    return facts


def parse_measurement(raw: bytes) -> StatedMeasurement:
    """Read what `measurement_facts` wrote; members that `explain` has no use for are skipped.

    Raises:
        MeasurementMalformedError: Another form.
    """
    value = parse_json(raw, what=_WHAT, limit=MAX_RESULT, error=MeasurementMalformedError)
    members = Members.of(value, what=_WHAT, error=MeasurementMalformedError)
    stated = Members.of(members.values.get("registers"), what="registers", error=MeasurementMalformedError)
    stated.refuse_others(frozenset(REGISTERS))
    events = members.values.get("events")
    if not isinstance(events, list) or len(events) > MAX_EVENTS:
        raise MeasurementMalformedError(f"{_WHAT}: events: want a list of at most {MAX_EVENTS}")
    return StatedMeasurement(
        {name: stated.sized(name, Register) for name in REGISTERS if stated.has(name)},
        tuple(_line(item, at) for at, item in enumerate(events)),
        acpi_from_log=not members.flag("acpi_tables_verified", False),
    )


def _line(item: object, at: int) -> Line:
    members = Members.of(item, what=f"{_WHAT}: event {at}", error=MeasurementMalformedError)
    try:
        event = _event(members)
        depends_on = tuple(Input(each) for each in members.texts("depends_on"))
    except (EventLogMalformedError, ValueError) as exc:
        raise MeasurementMalformedError(f"{members.what}: {exc}") from exc
    preimage = members.hexadecimal("preimage") if members.has("preimage") else None
    return Line(event, members.text("label"), depends_on, preimage)


def _event(members: Members) -> Event:
    imr = members.integer("imr", maximum=RUNTIME_IMR)
    event_type = members.integer("event_type", maximum=_MAX_U32)
    name, payload = members.text("event"), members.hexadecimal("event_payload")
    if (imr, event_type) == (RUNTIME_IMR, RUNTIME_EVENT_TYPE):
        return logged(RuntimeEvent(name, payload, members.integer("version", 1, maximum=2)))
    return Event(imr, event_type, members.hexadecimal("digest"), name, payload)
