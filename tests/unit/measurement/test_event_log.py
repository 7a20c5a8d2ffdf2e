"""Event logs: what runtime events hash to, what a log replays to, and which logs are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dstack.errors import EventLogMalformedError
from dstack.measurement.event_log import (
    MAX_EVENTS,
    MAX_LOG_BYTES,
    RUNTIME_EVENT_TYPE,
    Event,
    RuntimeEvent,
    logged,
    parse_event_log,
    replay_event_log,
    runtime_event_digest,
    runtime_event_preimage,
    runtime_events,
    serialise_event_log,
)
from dstack.values import Register

Load = Callable[[str], Any]

BOOT: dict[str, object] = {"imr": 1, "event_type": 4, "digest": "aa" * 48, "event": "", "event_payload": "00"}
RUNTIME: dict[str, object] = {
    "imr": 3,
    "event_type": RUNTIME_EVENT_TYPE,
    "digest": "",
    "event": "app-id",
    "event_payload": "beef",
}
V2_PREIMAGE = b'{"name":"app-id","payload":"beef","type":134217729}'


def test_runtime_digests_are_those_of_the_golden_data(golden: Load) -> None:
    """Both versions of the digest, also of names with colons and control characters, equal the recorded ones."""
    for case in golden("event_digest.json")["cases"]:
        for version in (1, 2):
            event = RuntimeEvent(case["event"], bytes.fromhex(case["payload"]), version)
            assert runtime_event_preimage(event).hex() == case[f"preimage_v{version}"]
            assert runtime_event_digest(event).hex() == case[f"digest_v{version}"]


def test_a_real_log_replays_to_the_registers_of_its_quote(golden: Load) -> None:
    """All four registers of a real machine follow from its log."""
    case = golden("real_64gib_gpu.json")

    registers = replay_event_log(parse_event_log(case["event_log"]))

    assert {str(imr): register.hex() for imr, register in registers.items()} == case["replay"]["quote_rtmr"]


def test_a_log_survives_writing_and_reading(golden: Load) -> None:
    """Reading what was written gives the same events, and a full log gives the same text."""
    text = golden("real_64gib_gpu.json")["event_log"]

    assert serialise_event_log(parse_event_log(text)) == text


def test_a_version_2_event_survives_writing_and_reading() -> None:
    """It carries its version and preimage."""
    event = logged(RuntimeEvent("app-id", b"\xbe\xef", 2))

    assert event.preimage == V2_PREIMAGE
    assert parse_event_log(serialise_event_log([event])) == (event,)


def test_a_runtime_event_may_come_without_its_digest() -> None:
    """It is computed anyway, so an empty one and none are the same."""
    without = {name: value for name, value in RUNTIME.items() if name != "digest"}

    assert parse_event_log(json.dumps([without])) == parse_event_log(json.dumps([RUNTIME]))


def test_written_runtime_events_have_their_digest() -> None:
    """A stripped event is written with the digest of its content, which naive clients believe."""
    (event,) = json.loads(serialise_event_log(parse_event_log(json.dumps([RUNTIME]))))

    assert event["digest"] == runtime_event_digest(RuntimeEvent("app-id", b"\xbe\xef")).hex()


def test_the_content_of_a_runtime_event_wins_over_its_digest() -> None:
    """A log that claims another digest for an event replays to the register of its content."""
    lying = parse_event_log(json.dumps([{**RUNTIME, "digest": "ff" * 48}]))

    assert replay_event_log(lying) == replay_event_log(parse_event_log(json.dumps([RUNTIME])))


def test_only_runtime_events_are_runtime_events() -> None:
    """Events of the other registers are left out."""
    events = parse_event_log(json.dumps([BOOT, RUNTIME]))

    assert runtime_events(events) == (RuntimeEvent("app-id", b"\xbe\xef"),)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({**BOOT, "imr": 4}, "event 0: imr: want 0 to 3, got 4"),
        ({**BOOT, "imr": -1}, "event 0: imr: want 0 to 3, got -1"),
        ({**BOOT, "imr": 1.0}, "event 0: imr: want an integer"),
        ({**BOOT, "event_type": 2**32}, "event 0: event_type: want 0 to 4294967295"),
        ({**BOOT, "digest": "aa" * 49}, "event 0: digest: want at most 48 bytes, got 49"),
        ({**BOOT, "digest": "xy"}, "event 0: digest: want hexadecimal"),
        ({**BOOT, "digest": ""}, "event 0: event of RTMR1: want a digest and version 1"),
        ({k: v for k, v in BOOT.items() if k != "digest"}, "event 0: event of RTMR1: want a digest and version 1"),
        ({**BOOT, "digest": None}, "event 0: digest: want a string, got null"),
        ({**BOOT, "version": 2}, "event 0: event of RTMR1: want a digest and version 1"),
        ({**BOOT, "event": None}, "event 0: event: want a string, got null"),
        ({**BOOT, "extra": 1}, "event 0: unknown member 'extra'"),
        ({k: v for k, v in BOOT.items() if k != "event"}, "event 0: member 'event' is missing"),
        ({**BOOT, "event_type": RUNTIME_EVENT_TYPE}, "event_type: 0x8000001 does not belong in RTMR1"),
        ({**RUNTIME, "event_type": 4, "digest": "aa" * 48}, "event_type: 0x4 does not belong in RTMR3"),
        ({**RUNTIME, "version": 3}, "event 0: version: want 0 to 2, got 3"),
        ({**RUNTIME, "version": 0}, "event 0: event 'app-id': want version 1 or 2, got 0"),
        ({**RUNTIME, "preimage": "00"}, "event 0: event 'app-id': version 1 has no preimage"),
        ({**RUNTIME, "version": 2}, "event 'app-id': preimage is missing or of another event"),
        ({**RUNTIME, "version": 2, "preimage": V2_PREIMAGE.hex() + "20"}, "preimage is missing or of another event"),
        (
            {**RUNTIME, "version": 2, "preimage": V2_PREIMAGE.hex(), "digest": "ff" * 48},
            "event 'app-id': digest is not that of its preimage",
        ),
        ([], "event 0: want a JSON object, got an array"),
    ],
)
def test_an_event_of_another_form_is_refused(event: object, message: str) -> None:
    """The sentence says which event, which member, what was wanted and what came."""
    with pytest.raises(EventLogMalformedError, match=message):
        parse_event_log(json.dumps([event]))


def test_a_raw_digest_cannot_hide_an_event_of_rtmr3() -> None:
    """An event that is not a runtime event cannot be made for RTMR3, in a log or anywhere else."""
    hidden = runtime_event_digest(RuntimeEvent("app-id", bytes(20)))

    with pytest.raises(EventLogMalformedError, match="0x4 does not belong in RTMR3"):
        Event(3, 4, hidden, "", b"")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "event log: want a JSON array of events"),
        ('[{"imr":0,"imr":0}]', "event log: not JSON: member 'imr' appears twice"),
        ("[" + ",".join(["0"] * (MAX_EVENTS + 1)) + "]", "event log: want at most 4096 events, got 4097"),
        (" " * (MAX_LOG_BYTES + 1), "event log: want at most 1048576 bytes, got 1048577"),
    ],
)
def test_a_log_of_another_form_is_refused(text: str, message: str) -> None:
    """Size, number of events and form are bounded."""
    with pytest.raises(EventLogMalformedError, match=message):
        parse_event_log(text)


def test_a_log_of_the_most_events_is_read() -> None:
    """4096 events are not too many."""
    assert len(parse_event_log(json.dumps([RUNTIME] * MAX_EVENTS))) == MAX_EVENTS


@pytest.mark.parametrize("version", [1, 2])
def test_a_name_that_is_no_text_has_no_digest(version: int) -> None:
    """A lone surrogate cannot be hashed, and is malformed rather than a crash."""
    with pytest.raises(EventLogMalformedError, match="event name: want Unicode text"):
        runtime_event_digest(RuntimeEvent("\ud800", b"", version))


def test_an_empty_log_replays_to_zeros() -> None:
    """Without events every register is zero."""
    assert replay_event_log(()) == dict.fromkeys(range(4), Register(bytes(48)))
