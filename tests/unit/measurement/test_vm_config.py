"""VM configs: read from either form, written without defaults, refused when unclear."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.vm_config import VmConfig, parse_vm_config, serialise_vm_config
from dstack.values import OsImageHash

Load = Callable[[str], Any]

LEAST: dict[str, object] = {"os_image_hash": "ab" * 32, "cpu_count": 2, "memory_size": 2**31}


def parse(**members: object) -> VmConfig:
    """Read the least VM config with *members* besides."""
    return parse_vm_config(json.dumps({**LEAST, **members}))


def test_the_least_config_has_the_defaults() -> None:
    """Three members are enough."""
    assert parse() == VmConfig(os_image_hash=OsImageHash(b"\xab" * 32), cpu_count=2, memory_size=2**31)


def test_a_sys_config_holds_a_vm_config() -> None:
    """The string inside is what counts."""
    assert parse_vm_config(json.dumps({"kms_urls": [], "vm_config": json.dumps(LEAST)})) == parse()


def test_a_real_config_is_read(golden: Load) -> None:
    """The one of a machine with a GPU."""
    config = parse_vm_config(golden("real_64gib_gpu.json")["vm_config"])

    assert (config.cpu_count, config.memory_size, config.qemu_version) == (16, 64 * 2**30, "9.2.1")
    assert (config.num_gpus, config.hotplug_off, config.two_pass, config.pic) == (1, True, False, False)


def test_defaults_are_left_out() -> None:
    """What upstream does not write at its default is not written here, the rest is."""
    assert json.loads(serialise_vm_config(parse())) == {
        "spec_version": 1,
        **LEAST,
        "host_share_mode": "9p",
        "pci_hole64_size": 0,
        "hugepages": False,
        "hotplug_off": False,
        "num_gpus": 0,
        "num_nvswitches": 0,
    }


def test_an_unnamed_share_mode_is_9p() -> None:
    """Whether it is missing or empty, as in a config that upstream wrote again."""
    assert parse(host_share_mode="") == parse()
    assert parse().host_share_mode == "9p"


def test_a_full_config_survives_writing_and_reading() -> None:
    """Every member comes back."""
    config = VmConfig(
        os_image_hash=OsImageHash(b"\xcd" * 32),
        cpu_count=4,
        memory_size=2**33,
        qemu_version="8.2.2",
        qemu_single_pass_add_pages=False,
        pic=True,
        ovmf_variant="pre202505",
        tdx_attestation_variant="lite",
        checksum_file=b"checksums",
        measurement=b"\x00\xff",
        image="dstack-0.6 é",
        host_share_mode="vvfat",
        pci_hole64_size=2**44,
        hugepages=True,
        hotplug_off=True,
        num_gpus=1,
        num_nvswitches=2,
        num_nics=3,
        num_verity_volumes=4,
        swtpm=True,
    )

    assert parse_vm_config(serialise_vm_config(config)) == config


@pytest.mark.parametrize(
    ("version", "switch", "two_pass"),
    [
        (None, None, False),
        ("8.0.0", None, True),
        ("8.2.2", None, True),
        ("9.0.0", None, False),
        ("10.1.0", None, False),
        ("8.2.2", False, False),
        ("9.2.1", True, True),
    ],
)
def test_the_qemu_version_gives_the_order_of_pages(version: str | None, switch: bool | None, two_pass: bool) -> None:
    """QEMU 8 takes two passes; the switch, whose upstream name says the contrary, overrides it."""
    assert parse(qemu_version=version, qemu_single_pass_add_pages=switch).two_pass is two_pass


def test_an_old_qemu_is_refused() -> None:
    """Nobody recorded what QEMU 7 measures."""
    with pytest.raises(MeasurementMalformedError, match=r"qemu_version: want 8\.0\.0 or later, got 7\.2\.0"):
        _ = parse(qemu_version="7.2.0").two_pass


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"os_image_hash": "ab"}, "os_image_hash: OsImageHash: want 32 bytes, got 1"),
        ({"os_image_hash": "zz" * 32}, "os_image_hash: want hexadecimal"),
        ({"cpu_count": "2"}, "cpu_count: want an integer, got a string"),
        ({"memory_size": -1}, "memory_size: want 0 to 18446744073709551615, got -1"),
        ({"memory_size": 2**64}, "memory_size: want 0 to"),
        ({"qemu_version": "9.2"}, "qemu_version: want MAJOR.MINOR.PATCH, got '9.2'"),
        ({"qemu_version": "9.2.1 "}, "qemu_version: want MAJOR.MINOR.PATCH"),
        ({"qemu_version": "٩.2.1"}, "qemu_version: want MAJOR.MINOR.PATCH"),
        ({"qemu_version": "09.2.1"}, "qemu_version: want MAJOR.MINOR.PATCH"),
        ({"tdx_attestation_variant": "Lite"}, "tdx_attestation_variant: want legacy or lite, got 'Lite'"),
        ({"spec_version": 2}, "spec_version: want 1"),
        ({"tdx_measurement": "x"}, "tdx_measurement: want a JSON object, got a string"),
        ({"tdx_measurement": {"measurement": ""}}, "tdx_measurement: member 'checksum_file' is missing"),
        ({"tdx_measurement": {"checksum_file": "", "measurement": "a b="}}, "measurement: want base64"),
        ({"tdx_measurement": {"checksum_file": "", "measurement": "é"}}, "measurement: want base64"),
        ({"pic": 1}, "pic: want true or false, got a number"),
        ({"vm_config": "{}"}, "want a VM config or a sys-config that holds one, got both"),
    ],
)
def test_a_member_of_another_form_is_refused(members: dict[str, object], message: str) -> None:
    """Each with one sentence that names it."""
    with pytest.raises(MeasurementMalformedError, match=message):
        parse(**members)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "vm_config: not JSON"),
        ("[]", "vm_config: want a JSON object"),
        ('{"vm_config":1}', "vm_config: want a string, got a number"),
        ('{"vm_config":"[]"}', "vm_config of the sys-config: want a JSON object"),
        ('{"vm_config":"{\\"a\\":1,\\"a\\":2}"}', "vm_config of the sys-config: not JSON: member 'a' appears twice"),
        ('{"memory_size":1,"memory_size":2}', "member 'memory_size' appears twice"),
        ("{}", "member 'os_image_hash' is missing"),
    ],
)
def test_a_text_of_another_form_is_refused(text: str, message: str) -> None:
    """Also one that states a size twice."""
    with pytest.raises(MeasurementMalformedError, match=message):
        parse_vm_config(text)


def test_half_a_measurement_is_refused() -> None:
    """A checksum file without its document cannot be checked."""
    with pytest.raises(MeasurementMalformedError, match="want both checksum_file and measurement, got one"):
        VmConfig(os_image_hash=OsImageHash(bytes(32)), cpu_count=1, memory_size=1, checksum_file=b"")
