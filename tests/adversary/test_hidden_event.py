"""The attacker shows a true event under a longer name: the digest is the same, and the event is hidden."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstack.errors import AppraisalError
from dstack.measurement.event_log import RuntimeEvent, runtime_event_digest

COMPOSE = b"\x01" * 32
INSTANCE_ID = b"\x07" * 4 + b":" + b"\x08" * 15


@pytest.mark.parametrize("name", ["instance-id", "key-provider"])
def test_an_event_cannot_be_hidden_under_a_longer_name(world, name):
    """A log that replays, with one event cut at a colon of its payload, is refused."""
    events = tuple(
        replace(event, payload=INSTANCE_ID) if event.name == "instance-id" else event for event in world.events(COMPOSE)
    )
    evidence = world.evidence(events)
    shown = tuple(_renamed(event) if event.name == name else event for event in events)

    assert [runtime_event_digest(event) for event in shown] == [runtime_event_digest(event) for event in events]
    assert world.appraise(evidence).instance_id == INSTANCE_ID
    with pytest.raises(AppraisalError, match="want no colon in the name of an event before system-ready, got one"):
        world.appraise(replace(evidence, runtime_events=shown))


def _renamed(event: RuntimeEvent) -> RuntimeEvent:
    hidden, rest = event.payload.split(b":", 1)
    return RuntimeEvent(f"{event.name}:{hidden.decode()}", rest)
