"""Labels and inputs: every predicted event says what it is and what changes it, and the inputs are the true ones."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from dstack.measurement.acpi import ACPI_NAMES, AcpiDigests, AcpiSource
from dstack.measurement.firmware import EV_SEPARATOR
from dstack.measurement.labels import labelled
from dstack.measurement.machine import BootPrediction, ImageFiles, image_digests, predict_boot
from dstack.measurement.prediction import RUNTIME_INPUTS, Input, Origin, plain
from dstack.measurement.rtmr3 import SEQUENCES, sequence_of_release
from dstack.measurement.vm_config import VmConfig
from dstack.simulator.image_parts import make_firmware, make_kernel
from dstack.values import OsImageHash, Register

FILES = ImageFiles(firmware=make_firmware(b"1"), kernel=make_kernel(b"1"), initrd=b"initrd", cmdline="console=ttyS0")
CONFIG = VmConfig(os_image_hash=OsImageHash(bytes(32)), cpu_count=2, memory_size=2**30)


def acpi(fill: int = 1) -> AcpiDigests:
    """Digests of some tables."""
    digests = {name: Register(bytes([fill]) * 48) for name in ACPI_NAMES}
    return AcpiDigests(MappingProxyType(digests), AcpiSource.CAPTURED, "a test")


def predict(files: ImageFiles = FILES, config: VmConfig = CONFIG, tables: AcpiDigests | None = None) -> BootPrediction:
    """Predict a boot."""
    return predict_boot(image_digests(files, config), config, tables or acpi())


@pytest.mark.parametrize(
    ("files", "config", "tables", "changed"),
    [
        ({"firmware": make_firmware(b"2")}, {}, 1, set()),
        ({"kernel": make_kernel(b"2")}, {}, 1, {Input.KERNEL}),
        ({"initrd": b"other!"}, {}, 1, {Input.INITRD}),
        ({"initrd": b"longer than a page" * 999}, {}, 1, {Input.INITRD}),
        ({"cmdline": "quiet"}, {}, 1, {Input.CMDLINE}),
        ({}, {"memory_size": 2**31}, 1, {Input.MEMORY}),
        ({}, {"cpu_count": 4}, 2, {Input.DEVICES}),
        ({}, {"qemu_version": "8.2.2"}, 2, {Input.QEMU}),
    ],
    ids=["firmware", "kernel", "initrd", "longer initrd", "command line", "memory", "processors", "QEMU"],
)
def test_an_event_changes_only_with_what_it_depends_on(
    files: dict[str, Any], config: dict[str, Any], tables: int, changed: set[Input]
) -> None:
    """Changing one input changes no event that does not name it; ACPI digests come with the shape."""
    before = predict()
    after = predict(replace(FILES, **files), replace(CONFIG, **config), acpi(tables))

    different = [one for one, other in zip(before.events, after.events, strict=True) if one.event != other.event]
    assert all(changed & set(each.depends_on) for each in different)
    assert bool(different) == bool(changed)


def test_mrtd_follows_from_firmware_and_qemu_alone() -> None:
    """Neither memory nor processors nor kernel are in it."""
    mrtd = predict().mrtd

    assert predict(replace(FILES, firmware=make_firmware(b"2"))).mrtd != mrtd
    assert predict(config=replace(CONFIG, qemu_version="8.2.2")).mrtd != mrtd
    for other in (replace(CONFIG, memory_size=2**33), replace(CONFIG, cpu_count=9)):
        assert predict(config=other).mrtd == mrtd
    assert predict(replace(FILES, kernel=make_kernel(b"2"))).mrtd == mrtd


def test_a_log_of_the_same_boot_gets_the_same_labels() -> None:
    """What a prediction calls its events, a log of them is called too."""
    predicted = predict().events

    lines = labelled(plain(predicted))

    assert [(line.label, line.depends_on) for line in lines] == [(each.label, each.depends_on) for each in predicted]


def test_origins_say_where_digests_come_from() -> None:
    """ACPI digests carry their source, all others are computed."""
    origins = {each.label: each.origin for each in predict().events}

    assert {name for name, origin in origins.items() if origin is Origin.CAPTURED} == set(ACPI_NAMES)
    assert set(origins.values()) == {Origin.COMPUTED, Origin.CAPTURED}


def test_preimages_are_what_was_hashed() -> None:
    """Where one is given, its SHA-384 is the digest."""
    from hashlib import sha384

    given = [each for each in predict().events if each.preimage is not None]

    assert len(given) >= 13
    assert all(sha384(each.preimage or b"").digest() == each.event.digest for each in given)


def test_without_acpi_digests_rtmr0_is_not_predicted() -> None:
    """The others are."""
    prediction = predict_boot(image_digests(FILES, CONFIG), CONFIG, None)

    assert sorted(prediction.registers) == ["mrtd", "rtmr1", "rtmr2"]


def test_every_system_event_has_its_inputs() -> None:
    """No event of any release is left to guessing."""
    assert {name for sequence in SEQUENCES.values() for name in sequence} == set(RUNTIME_INPUTS)


def test_an_event_at_another_place_is_not_given_a_known_name() -> None:
    """A second separator where a variable should be."""
    events = list(plain(predict().events))
    events[2] = replace(events[2], event_type=EV_SEPARATOR)

    assert labelled(events)[2].label == "unexpected event of type 0x4"


@pytest.mark.parametrize(
    ("version", "sequence"),
    [
        ("0.3.1", "0.3.2"),
        ("v0.3.5", "0.3.6"),
        ("dev-v0.4.0.0", "dev-0.4.0"),
        ("0.4.2", "0.5.0"),
        ("dstack-0.5.3", "0.5.4"),
        ("dstack-dev-0.5.5", "0.5.7"),
        ("0.5.11", "0.5.7"),
        ("0.6.0", None),
        ("latest", None),
        ("0.5", None),
        ("0.5.4.1.2", None),
    ],
)
def test_a_release_names_its_sequence(version: str, sequence: str | None) -> None:
    """From 0.6.0 on a version does not decide."""
    assert sequence_of_release(version) == sequence
