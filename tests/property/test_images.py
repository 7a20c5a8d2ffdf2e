"""Properties of image measurement: fast and slow computations agree, and hostile bytes get an error of ours, soon."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstack.cli.subjects import parse_subject
from dstack.errors import DstackError
from dstack.measurement.acpi import ACPI_NAMES, AcpiDigests, AcpiSource, derive_acpi_blobs
from dstack.measurement.acpi_store import AcpiShape, StoredTables, parse_store_index, serialise_store_index
from dstack.measurement.authenticode import authenticode_sha384, parse_pe
from dstack.measurement.ccel import parse_ccel
from dstack.measurement.difference import Outcome, Side, explain
from dstack.measurement.event_log import Event, RuntimeEvent, logged
from dstack.measurement.image import parse_image_metadata
from dstack.measurement.kernel import initrd_address, kernel_digest
from dstack.measurement.labels import Line, labelled
from dstack.measurement.mr_config_id import ConfigDocument, parse_config_document, serialise_config_document
from dstack.measurement.mrtd import mrtd
from dstack.measurement.prediction import Origin, measured, runtime
from dstack.measurement.result import Measurement
from dstack.measurement.result_json import measurement_facts, parse_measurement
from dstack.measurement.tdvf import parse_firmware
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, Register
from tests.image_parts import PAGE, Part, Pe, acpi_tables, firmware, slow_authenticode, slow_mrtd

u32 = st.integers(0, 2**32 - 1)
digests = st.binary(min_size=32, max_size=32)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Part, ...]:
    """Sections of a six-page image that hold together: any order, types, attributes, gaps."""
    parts, gpa = [], draw(st.integers(0, 2**20)) * PAGE
    cuts = sorted(draw(st.sets(st.integers(1, 5), max_size=3)) | {0, 6})
    for start, end in itertools.pairwise(cuts):
        attributes = draw(st.integers(0, 3))
        size = (end - start) * PAGE
        room = 0 if attributes & 1 else draw(st.integers(0, 3)) * PAGE
        parts.append(Part(start * PAGE, size, gpa, size + room, draw(st.sampled_from([0, 1, 5, 6])), attributes))
        gpa += size + room + draw(st.integers(0, 2)) * PAGE
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.integers(0, 4)) * PAGE
        parts.append(Part(0, 0, gpa, size, draw(st.sampled_from([3, 4, 7, 8])), draw(st.sampled_from([0, 2]))))
        gpa += size
    return tuple(draw(st.permutations(parts)))


@given(layouts(), st.booleans())
@settings(max_examples=40)
def test_mrtd_of_any_layout_is_that_of_its_records(parts: tuple[Part, ...], two_pass: bool) -> None:
    """Large buffers and single records hash to the same register."""
    raw = firmware(parts)

    assert mrtd(parse_firmware(raw), two_pass=two_pass) == slow_mrtd(raw, parts, two_pass=two_pass)


@st.composite
def files(draw: st.DrawFn) -> Pe:
    """PE files whose sections follow each other in any order of the table, perhaps with certificates behind them."""
    at, sections = 0x600, []
    for size in draw(st.lists(st.integers(0, 0x400), max_size=5)):
        sections.append((at, size))
        at += size
    certificates = draw(st.integers(0, 64))
    security = (at, certificates) if certificates else (0, 0)
    magic = draw(st.sampled_from([0x10B, 0x20B]))
    ordered = draw(st.permutations(sections))
    return Pe(size=at + certificates, sections=tuple(ordered), security=security, magic=magic)


@given(files())
@settings(max_examples=60)
def test_authenticode_of_any_file_is_that_of_its_parts(pe: Pe) -> None:
    """Whatever the order of the table, and whatever is empty."""
    raw = pe.build()

    assert authenticode_sha384(raw) == slow_authenticode(raw, pe)


@given(st.integers(1, 2**30), st.integers(0, 2**40))
def test_an_initrd_lies_within_memory(initrd_size: int, memory: int) -> None:
    """On a page, below the ACPI data, whole; or it is refused."""
    try:
        address = initrd_address(Pe().build(), initrd_size=initrd_size, memory_size=memory)
    except DstackError:
        return
    assert address % PAGE == 0
    assert address + initrd_size <= min(memory, 0xB000_0000) - 0x28000


PARSERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "firmware": (firmware(), lambda raw: mrtd(parse_firmware(raw), two_pass=False)),
    "PE file": (Pe(sections=((0x600, 0x1A00),), security=(0x2000, 0x1000)).build(), authenticode_sha384),
    "kernel": (Pe().build(), lambda raw: kernel_digest(raw, initrd_size=999, memory_size=2**31)),
    "ACPI tables": (acpi_tables(), derive_acpi_blobs),
    "CCEL": (
        struct.pack("<II20xI", 1, 3, 33)
        + b"Spec ID Event03\0".ljust(33, b"\0")
        + struct.pack("<IIIH48xI", 1, 4, 1, 0xC, 2)
        + b"ab"
        + b"\xff" * 4,
        parse_ccel,
    ),
    "mr_config": (
        serialise_config_document(ConfigDocument(compose_hash=ComposeHash(bytes(32)), key_provider="kms")),
        parse_config_document,
    ),
    "metadata": (b'{"bios":"a","kernel":"b","initrd":"c","cmdline":"d"}', parse_image_metadata),
    "ACPI store": (b'[{"shape":{"qemu_version":"9.1.0","cpu_count":1},"tables":"a"}]', parse_store_index),
    "measurement": (b'{"registers":{"mrtd":"' + b"00" * 48 + b'"},"events":[]}', parse_measurement),
    "subject": (b'{"quote":"00","event_log":"[]","vm_config":"{}"}', lambda raw: parse_subject(raw, "x")),
}


@pytest.mark.parametrize("kind", PARSERS)
@given(data=st.data())
@settings(max_examples=60)
def test_changed_bytes_get_a_value_or_an_error_of_ours(kind: str, data: st.DataObject) -> None:
    """Bytes and numbers overwritten anywhere, cut short or extended: no other exception, whatever they say."""
    raw, parse = PARSERS[kind]
    changed = bytearray(raw)
    # Where structure is: half of the changes go to the bytes that are not filling.
    places = st.integers(0, len(raw) - 1) | st.sampled_from(range(max(len(raw) - 0x480, 0), len(raw)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(places)
        value = data.draw(st.binary(min_size=1, max_size=8) | u32.map(lambda number: number.to_bytes(4, "little")))
        changed[at : at + len(value)] = value
    size = data.draw(st.sampled_from([len(changed), len(changed), data.draw(st.integers(0, len(changed)))]))

    with suppress(DstackError):
        parse(bytes(changed[:size]))


@pytest.mark.parametrize("kind", PARSERS)
@given(raw=st.binary(max_size=200))
@settings(max_examples=40)
def test_any_bytes_get_a_value_or_an_error_of_ours(kind: str, raw: bytes) -> None:
    """Also the smallest and emptiest."""
    with suppress(DstackError):
        PARSERS[kind][1](raw)


@given(st.permutations([b"APIC", b"MCFG", b"WAET", b"HPET", b"SRAT"]), st.integers(0, 5))
def test_every_table_but_facs_gets_its_checksum(names: list[bytes], count: int) -> None:
    """In the order of the blob, and each is pointed to once."""
    blobs = derive_acpi_blobs(acpi_tables(names[:count]))

    codes = [blobs.loader[at] for at in range(0, len(blobs.loader), 128) if blobs.loader[at]]
    assert codes.count(3) == count + 4
    assert codes.count(2) == count + 1 + 4


@given(
    st.builds(
        ConfigDocument,
        compose_hash=digests.map(ComposeHash),
        key_provider=st.sampled_from(["none", "local", "kms", "tpm"]),
        key_provider_id=st.none() | st.binary(max_size=91),
        app_id=st.none() | st.binary(min_size=20, max_size=20).map(AppId),
        instance_id=st.none() | st.just(b"") | st.binary(min_size=20, max_size=20).map(InstanceId),
        gpu_policy_hash=st.none() | digests.map(Digest32),
        init_script_hashes=st.none() | st.lists(digests.map(Digest32), max_size=5).map(tuple),
    )
)
def test_a_config_document_that_was_written_is_read_again(document: ConfigDocument) -> None:
    """Whatever a machine is bound to."""
    assert parse_config_document(serialise_config_document(document)) == document


@given(
    st.dictionaries(
        st.builds(
            AcpiShape,
            qemu_version=st.text(st.characters(codec="utf-8"), max_size=9),
            cpu_count=u32,
            memory_size=u32,
            pic=st.booleans(),
            host_share_mode=st.text(st.characters(codec="utf-8"), max_size=9),
            pci_hole64_size=u32,
            hugepages=st.booleans(),
            hotplug_off=st.booleans(),
            num_gpus=u32,
            num_nvswitches=u32,
            num_nics=u32,
            num_verity_volumes=u32,
        ),
        st.builds(StoredTables, st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True), st.just("note")),
        max_size=4,
    )
)
def test_a_store_that_was_written_is_read_again(entries: dict[AcpiShape, StoredTables]) -> None:
    """Every shape with its file."""
    assert parse_store_index(serialise_store_index(entries)) == entries


@given(
    st.lists(
        st.builds(
            RuntimeEvent,
            st.text(st.characters(codec="utf-8"), max_size=20),
            st.binary(max_size=40),
            st.sampled_from([1, 2]),
        ),
        max_size=6,
    ),
    st.lists(st.binary(min_size=1, max_size=30), max_size=4),
)
def test_a_measurement_that_was_written_is_read_again(events: list[RuntimeEvent], boot: list[bytes]) -> None:
    """Registers, and events with label, inputs and preimage."""
    predicted = (*(measured(1, 4, data, "something") for data in boot), *map(runtime, events))
    registers = {"mrtd": Register(bytes(48)), "rtmr3": Register(bytes([3]) * 48)}
    acpi = AcpiDigests(MappingProxyType(dict.fromkeys(ACPI_NAMES, Register(bytes(48)))), AcpiSource.HELPER, "x")
    measurement = Measurement(
        registers=registers, missing={}, events=predicted, identities={}, acpi=acpi, image_origin=Origin.COMPUTED
    )

    stated = parse_measurement(json.dumps(measurement_facts(measurement)).encode())

    assert stated.registers == registers
    assert stated.lines == tuple(Line(each.event, each.label, each.depends_on, each.preimage) for each in predicted)
    assert stated.acpi_from_log is False


logs = st.lists(
    st.builds(RuntimeEvent, st.sampled_from(["app-id", "compose-hash", "x"]), st.binary(max_size=3)).map(logged)
    | st.builds(
        Event,
        st.integers(0, 2),
        st.sampled_from([4, 6]),
        st.binary(min_size=48, max_size=48),
        st.just(""),
        st.just(b""),
    ),
    max_size=8,
)


@given(logs, logs)
def test_explaining_finds_a_difference_exactly_where_registers_differ(one: list[Event], other: list[Event]) -> None:
    """Of two logs; and comparing a log with itself finds none."""
    left, right = Side("a", {}, labelled(one)), Side("b", {}, labelled(other))

    for finding in explain(left, right):
        values = left.register(finding.register), right.register(finding.register)
        if None in values:
            assert finding.outcome is Outcome.UNKNOWN
        else:
            assert (finding.outcome is Outcome.EQUAL) == (values[0] == values[1])
    assert all(finding.outcome is Outcome.EQUAL for finding in explain(left, left))


def test_the_layout_that_is_read_covers_the_file() -> None:
    """Of a file without certificates every byte is in one hashed part, but for the two that are left out."""
    pe = Pe()
    layout = parse_pe(pe.build())

    assert layout.sections[0][0] == layout.headers_size
    assert layout.sections[-1][1] == layout.certificates[0] == pe.size
