"""RTMR0: its events are those of a real machine, and a witness that could mean two things is refused."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha384
from typing import Any

import pytest

from dstack.errors import EventLogMalformedError, MeasurementMalformedError
from dstack.measurement.acpi import ACPI_NAMES, ACPI_PAYLOAD, acpi_digests
from dstack.measurement.event_log import Event, parse_event_log
from dstack.measurement.firmware import rtmr0_events
from dstack.measurement.prediction import plain
from dstack.measurement.td_hob import (
    HIGH_MEMORY,
    PAGE,
    HobWitness,
    MemoryRange,
    parse_hob_witness,
    serialise_hob_witness,
    td_hob,
)
from dstack.values import Register

Load = Callable[[str], Any]

WITNESS = bytes.fromhex("80100904000609020b021010")
ACPI = {name: Register(bytes([number]) * 48) for number, name in enumerate(ACPI_NAMES)}


def acpi_event(blob: str, **change: Any) -> Event:
    """Make the event of one ACPI blob."""
    fields: dict[str, Any] = {"imr": 0, "event_type": 10, "digest": ACPI[blob], "name": blob, "payload": ACPI_PAYLOAD}
    return Event(**{**fields, **change})


def test_a_real_rtmr0_follows_from_the_formula(golden: Load) -> None:
    """All 13 digests of a machine with 64 GiB are computed, but for the three of ACPI."""
    log = [event for event in parse_event_log(golden("real_64gib_gpu.json")["event_log"]) if event.imr == 0]
    of_acpi = [Register(event.digest) for event in log if event.event_type == 10]

    events = plain(rtmr0_events(parse_hob_witness(WITNESS), 64 * 2**30, dict(zip(ACPI_NAMES, of_acpi, strict=True))))

    assert [(event.event_type, event.digest) for event in events] == [(event.event_type, event.digest) for event in log]


def test_variables_and_constants_are_those_of_real_logs(golden: Load) -> None:
    """The digests that depend on nothing."""
    case = golden("lite_document.json")
    variables, constants = case["efi_variables"], case["constants"]

    digests = [event.digest.hex() for event in plain(rtmr0_events(parse_hob_witness(WITNESS), 2**31, ACPI))]

    assert digests[1] == constants["cfv"]
    assert digests[2:7] == [variables[name] for name in ("SecureBoot", "PK", "KEK", "db", "dbx")]
    assert digests[7] == constants["separator"]
    assert digests[11:] == [constants["boot_order"], constants["boot0000"]]


def test_the_witness_of_dstacks_firmware() -> None:
    """Four ranges, the TD HOB being the second; and writing gives the same bytes."""
    witness = parse_hob_witness(WITNESS)

    assert witness == HobWitness(
        0x809000,
        (
            MemoryRange(0x800000, 0x6000),
            MemoryRange(0x809000, 0x2000),
            MemoryRange(0x80B000, 0x2000),
            MemoryRange(0x810000, 0x10000),
        ),
    )
    assert serialise_hob_witness(witness) == WITNESS


def test_memory_is_split_from_2816_mib_on() -> None:
    """One page below, the last stretch is one; from there it goes on above 4 GiB."""
    witness = parse_hob_witness(WITNESS)

    below, above = td_hob(witness, HIGH_MEMORY - PAGE), td_hob(witness, HIGH_MEMORY)

    assert len(above) == len(below) + 48
    assert below[-16:] == (0x820000).to_bytes(8, "little") + (HIGH_MEMORY - PAGE - 0x820000).to_bytes(8, "little")
    assert above[-64:-48] == (0x820000).to_bytes(8, "little") + (2**31 - 0x820000).to_bytes(8, "little")
    assert above[-16:] == (2**32).to_bytes(8, "little") + (HIGH_MEMORY - 2**31).to_bytes(8, "little")


def test_nothing_is_listed_between_a_range_and_the_split_where_it_ends() -> None:
    """Firmware that accepts memory up to 2 GiB leaves no stretch of zero length below 4 GiB."""
    witness = HobWitness(2**31 - PAGE, (MemoryRange(2**31 - PAGE, PAGE),))

    hob = td_hob(witness, HIGH_MEMORY)

    resources = [hob[at : at + 48] for at in range(56, len(hob), 48)]
    places = [(int.from_bytes(each[32:40], "little"), int.from_bytes(each[40:48], "little")) for each in resources]
    assert places == [(0, 2**31 - PAGE), (2**31 - PAGE, PAGE), (2**32, HIGH_MEMORY - 2**31)]


def test_td_hobs_of_other_firmware(golden: Load) -> None:
    """The TD HOB digests of Debian's builds follow from their sections, below, at and above the split."""
    for build in golden("td_hob.json"):
        witness = HobWitness(build["hob_start"], tuple(MemoryRange(*part) for part in build["accepted"]))

        digests = {size: sha384(td_hob(witness, int(size))).hexdigest() for size in build["td_hob_sha384"]}

        assert digests == build["td_hob_sha384"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("", "want three numbers"),
        ("8010", "want three numbers"),
        ("80100901", "want three numbers and then two per range, got more or fewer"),
        (WITNESS.hex() + "00", "want three numbers and then two per range, got more or fewer"),
        (WITNESS.hex()[:-2], "want three numbers and then two per range, got more or fewer"),
        (WITNESS.hex() + "80", "it ends inside a number"),
        ("8010" + "00" + "00", "want at least one memory range"),
        ("8000" + "0001" + "0001", "a number is above 64 bits, or longer than it has to be"),
        ("ff" * 9 + "02" + "0001" + "0001", "a number is above 64 bits"),
        ("ff" * 9 + "01" + "0001" + "0001", "want ranges of whole pages within 52 bits"),
        ("8010" + "0001" + "0000", "a memory range is empty"),
        ("8010" + "0002" + "0002" + "0102", "memory ranges overlap or are not sorted"),
        ("8010" + "0002" + "0202" + "0002", "memory ranges overlap or are not sorted"),
        ("8010" + "0101" + "0002", "no memory range starts at the TD HOB"),
        ("8010" + "0101" + "0101", "the first range does not start at the base"),
    ],
)
def test_another_witness_is_refused(raw: str, message: str) -> None:
    """Also one with a byte behind it, or a number written longer than needed."""
    with pytest.raises(MeasurementMalformedError, match=f"TD HOB witness: {message}"):
        parse_hob_witness(bytes.fromhex(raw))


@pytest.mark.parametrize("size", [0, 0x820000, 2**31 + 1, 2**52])
def test_memory_that_does_not_hold_the_firmware_is_refused(size: int) -> None:
    """It has to reach beyond the last range, in whole pages."""
    with pytest.raises(MeasurementMalformedError, match=f"memory size: want whole pages, .* got {size}"):
        td_hob(parse_hob_witness(WITNESS), size)


def test_acpi_digests_are_taken_by_name() -> None:
    """Their order in the log does not matter, and other events are left alone."""
    others = (Event(0, 4, b"x" * 48, "acpi-loader", ACPI_PAYLOAD), acpi_event("acpi-rsdp", imr=1))

    assert acpi_digests((*others, *(acpi_event(name) for name in reversed(ACPI_NAMES)))) == ACPI


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ((), "got none"),
        (tuple(acpi_event(name, name="") for name in ACPI_NAMES), "got '', '', ''"),
        (tuple(map(acpi_event, ACPI_NAMES[:2])), "got 'acpi-loader', 'acpi-rsdp'"),
        (tuple(map(acpi_event, (*ACPI_NAMES, "acpi-rsdp"))), "once each, got"),
        ((*map(acpi_event, ACPI_NAMES), acpi_event("acpi-rsdp", name="")), "once each, got"),
        ((*map(acpi_event, ACPI_NAMES[:2]), acpi_event("acpi-tables", payload=b"")), "acpi-tables: want payload"),
        ((*map(acpi_event, ACPI_NAMES[:2]), acpi_event("acpi-tables", digest=b"x" * 32)), "a digest of 48 bytes"),
    ],
)
def test_acpi_events_that_are_unclear_are_refused(events: tuple[Event, ...], message: str) -> None:
    """Unnamed, missing, repeated or additional ones; nothing is guessed by position."""
    with pytest.raises(EventLogMalformedError, match=message):
        acpi_digests(events)


def test_all_three_acpi_digests_are_needed() -> None:
    """RTMR0 is not predicted from two."""
    with pytest.raises(MeasurementMalformedError, match="want acpi-loader, acpi-rsdp, acpi-tables, got acpi-loader"):
        rtmr0_events(parse_hob_witness(WITNESS), 2**31, {"acpi-loader": ACPI["acpi-loader"]})
