"""Reference values: from a document that the os image hash vouches for, for machines that it describes."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import cbor2
import pytest

from dstack.errors import EventLogMalformedError, MeasurementMalformedError
from dstack.measurement.acpi import ACPI_NAMES, ACPI_PAYLOAD, AcpiSource
from dstack.measurement.document import (
    ReferenceValues,
    parse_measurement_document,
    reference_boot_events,
    reference_values,
    serialise_measurement_document,
)
from dstack.measurement.event_log import Event, replay_event_log
from dstack.measurement.image import os_image_hash
from dstack.measurement.linux_boot import cmdline_digest, initrd_digest, rtmr1_events
from dstack.measurement.prediction import plain
from dstack.measurement.vm_config import VmConfig, parse_vm_config
from dstack.values import Register

Load = Callable[[str], Any]


@pytest.fixture
def case(golden: Load) -> dict[str, Any]:
    """Load the golden document with the registers it gives."""
    loaded: dict[str, Any] = golden("lite_document.json")
    return loaded


@pytest.fixture
def measurement(case: dict[str, Any]) -> bytes:
    """Give the golden document."""
    return b64decode(case["measurement_base64"])


@pytest.fixture
def acpi(case: dict[str, Any]) -> dict[str, Register]:
    """Give the golden ACPI digests."""
    return {name: Register.from_hex(digest) for name, digest in case["acpi_digests"].items()}


@pytest.fixture
def log(acpi: dict[str, Register]) -> tuple[Event, ...]:
    """Give a log stripped to the ACPI events."""
    return tuple(Event(0, 10, acpi[name], name, ACPI_PAYLOAD) for name in ACPI_NAMES)


def read_config(case: dict[str, Any], members: dict[str, Any]) -> VmConfig:
    """Read a golden VM config together with the golden document."""
    carried = {"checksum_file": case["checksum_file_base64"], "measurement": case["measurement_base64"]}
    return parse_vm_config(json.dumps({**members, "tdx_measurement": carried}))


@pytest.fixture
def config(case: dict[str, Any]) -> VmConfig:
    """Give a VM config of 2 GiB and QEMU 8."""
    return read_config(case, case["expected"][0]["vm_config"])


def listed(measurement: bytes, config: VmConfig) -> VmConfig:
    """Let the checksum file and os image hash of *config* be those of *measurement*."""
    checksum_file = f"{sha256(measurement).hexdigest()}  measurement.tdx.cbor\n".encode()
    return replace(
        config, os_image_hash=os_image_hash(checksum_file), checksum_file=checksum_file, measurement=measurement
    )


def test_registers_are_those_of_the_golden_data(case: dict[str, Any], log: tuple[Event, ...]) -> None:
    """Four shapes of machine: both orders of firmware pages, and memory below and above the split."""
    for expected in case["expected"]:
        config = read_config(case, expected["vm_config"])

        assert reference_values(config, log) == ReferenceValues(
            mrtd=Register.from_hex(expected["mrtd"]),
            rtmr0=Register.from_hex(expected["rtmr0"]),
            rtmr1=Register.from_hex(expected["rtmr1"]),
            rtmr2=Register.from_hex(expected["rtmr2"]),
            os_image_hash=config.os_image_hash,
            acpi_source=AcpiSource.FROM_LOG,
        )


def test_memory_between_the_known_sizes_is_refused(
    case: dict[str, Any], config: VmConfig, log: tuple[Event, ...]
) -> None:
    """There, the kernel's digest depends on the exact size, and the document has only one."""
    for size in case["reject_memory_sizes"]:
        with pytest.raises(MeasurementMalformedError, match=f"memory size: want 2147483648, .* got {size}"):
            reference_values(replace(config, memory_size=size), log)


def test_a_machine_plays_what_is_expected_of_it(
    measurement: bytes, config: VmConfig, log: tuple[Event, ...], acpi: dict[str, Register]
) -> None:
    """The boot events of a shape, taken as a machine's log, give the reference values of that shape."""
    played = reference_boot_events(parse_measurement_document(measurement), config, acpi)

    values = reference_values(config, played)

    assert values == reference_values(config, log)
    assert (values.rtmr0, values.rtmr1, values.rtmr2) == tuple(replay_event_log(played)[imr] for imr in range(3))


def test_other_acpi_digests_give_another_rtmr0_only(config: VmConfig, log: tuple[Event, ...]) -> None:
    """Whoever changes the log changes what RTMR0 must be, so a quote tells."""
    changed = (*log[:2], replace(log[2], digest=b"\xff" * 48))

    values = reference_values(config, changed)

    assert values.rtmr0 != reference_values(config, log).rtmr0
    assert replace(values, rtmr0=reference_values(config, log).rtmr0) == reference_values(config, log)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tdx_attestation_variant": "legacy"}, "tdx_attestation_variant: want lite, got legacy"),
        ({"checksum_file": None, "measurement": None}, "tdx_measurement: it is missing"),
        ({"checksum_file": b"x"}, "checksum file: its SHA-256 is not the os image hash"),
        ({"measurement": b"x"}, "measurement.tdx.cbor: the checksum file does not list these bytes"),
        ({"ovmf_variant": "stable202505"}, "ovmf_variant: want pre202505, got 'stable202505'"),
        ({"swtpm": True}, "swtpm: a machine with a software TPM"),
        ({"qemu_version": "7.2.0"}, "qemu_version: want 8.0.0 or later"),
    ],
)
def test_a_config_without_its_image_is_refused(
    config: VmConfig, log: tuple[Event, ...], change: dict[str, Any], message: str
) -> None:
    """Each link from the os image hash to the document is checked, and each fact that the document does not cover."""
    with pytest.raises(MeasurementMalformedError, match=message):
        reference_values(replace(config, **change), log)


def test_an_image_that_does_not_list_a_document_is_refused(config: VmConfig, log: tuple[Event, ...]) -> None:
    """Another file with the same digest is not the document."""
    assert config.measurement is not None
    checksum_file = f"{sha256(config.measurement).hexdigest()}  other.cbor\n".encode()
    other = replace(config, checksum_file=checksum_file, os_image_hash=os_image_hash(checksum_file))

    with pytest.raises(MeasurementMalformedError, match="the checksum file does not list these bytes"):
        reference_values(other, log)


def test_a_listed_document_is_used(measurement: bytes, config: VmConfig, log: tuple[Event, ...]) -> None:
    """A document with another initrd, properly listed, gives another RTMR2 and nothing else."""
    document = replace(parse_measurement_document(measurement), initrd=Register(bytes(48)))

    values = reference_values(listed(serialise_measurement_document(document), config), log)

    original = reference_values(config, log)
    assert values.rtmr2 != original.rtmr2
    assert (values.mrtd, values.rtmr0, values.rtmr1) == (original.mrtd, original.rtmr0, original.rtmr1)


def test_a_log_without_named_acpi_events_is_refused(config: VmConfig, log: tuple[Event, ...]) -> None:
    """Older guests do not name them, and their machines are not guessed at."""
    with pytest.raises(EventLogMalformedError, match="ACPI events: want"):
        reference_values(config, tuple(replace(event, name="") for event in log))


def test_a_document_is_written_as_an_image_build_does(measurement: bytes) -> None:
    """Reading and writing give the same bytes."""
    assert serialise_measurement_document(parse_measurement_document(measurement)) == measurement


def test_every_flipped_byte_of_a_document_shows(measurement: bytes) -> None:
    """A document with one byte changed is refused or is another document; it never reads as the same."""
    original = parse_measurement_document(measurement)
    for at in range(len(measurement)):
        flipped = measurement[:at] + bytes([measurement[at] ^ 1]) + measurement[at + 1 :]
        try:
            assert parse_measurement_document(flipped) != original
        except MeasurementMalformedError:
            continue


def edited(measurement: bytes, path: tuple[str, ...], value: object) -> bytes:
    """Write the golden document with one field set, or left out for `...`."""
    document = inner = cbor2.loads(measurement)
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return cbor2.dumps(document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 2, "want version 3, got 2"),
        (("version",), True, "want version 3, got True"),
        (("version",), ..., "document: want a map of exactly version, image, tdvf"),
        (("extra",), 1, "document: want a map of exactly version, image, tdvf"),
        (("image",), [], "image: want a map of exactly cmdline_sha384, kernel_authenticode, initrd_sha384"),
        (("image", "initrd_sha384"), ..., "image: want a map of exactly"),
        (("image", "initrd_sha384"), bytes(47), "initrd_sha384: want 48 bytes, got 47"),
        (("image", "initrd_sha384"), "x" * 48, "initrd_sha384: want a byte string"),
        (("tdvf", "ovmf"), "stable202505", "want ovmf pre202505, got 'stable202505'"),
        (("tdvf", "mrtd", "third"), bytes(48), "mrtd: want a map of exactly single_pass, two_pass"),
        (("tdvf", "td_hob"), bytes.fromhex("80100904000609020b02101000"), "TD HOB witness: want three numbers"),
        (("tdvf", "mrtd", "two_pass"), {"a": 1}, "not CBOR: .*depth"),
    ],
)
def test_a_document_of_another_form_is_refused(
    measurement: bytes, path: tuple[str, ...], value: object, message: str
) -> None:
    """Version, layout, field set and every size are exact."""
    with pytest.raises(MeasurementMalformedError, match=message):
        parse_measurement_document(edited(measurement, path, value))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw + b"\x00", "want the shortest encoding and no bytes behind it"),
        (lambda raw: raw[:-1], "not CBOR"),
        (lambda _: b"", "not CBOR"),
        (lambda raw: b"\xa4" + raw[1:] + b"\x67version\x03", "not CBOR: .*[Dd]uplicate"),
        (lambda raw: raw.replace(b"\x67version\x03", b"\x67version\x18\x03"), "want the shortest encoding"),
        (lambda raw: b"\xb8\x03" + raw[1:], "want the shortest encoding"),
        (lambda raw: b"\xbf" + raw[1:] + b"\xff", "not CBOR: .*indefinite"),
        (lambda _: b"\x81" * 1000 + b"\x00", "not CBOR"),
        (lambda _: b"\x9b" + b"\xff" * 8, "not CBOR"),
        (lambda _: bytes(65537), "want at most 65536 bytes, got 65537"),
    ],
)
def test_a_document_in_another_encoding_is_refused(
    measurement: bytes, edit: Callable[[bytes], bytes], message: str
) -> None:
    """One document has one encoding: no trailing bytes, duplicates, longer numbers or indefinite lengths."""
    with pytest.raises(MeasurementMalformedError, match=f"measurement document: {message}"):
        parse_measurement_document(edit(measurement))


def test_linux_digests_are_those_of_the_golden_data(case: dict[str, Any], measurement: bytes) -> None:
    """The command line's digest includes the initrd argument, and RTMR1's other digests are the known constants."""
    constants = case["constants"]

    digests = [event.digest.hex() for event in plain(rtmr1_events(Register(bytes(48))))]

    assert cmdline_digest(case["cmdline"].removesuffix(" initrd=initrd")).hex() == case["cmdline_digest"]
    assert parse_measurement_document(measurement).cmdline.hex() == case["cmdline_digest"]
    assert digests[1:] == [
        constants[name] for name in ("calling_efi_app", "separator", "exit_bs_invocation", "exit_bs_success")
    ]
    assert initrd_digest(b"one byte") != initrd_digest(b"one byte.")
