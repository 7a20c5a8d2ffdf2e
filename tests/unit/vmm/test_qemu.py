"""QEMU command lines: devices in the measured order, from one VM config, for host, laptop and helper alike."""

from __future__ import annotations

import itertools
import json
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.mr_config_id import mr_config_id_v1
from dstack.measurement.vm_config import VmConfig
from dstack.values import ComposeHash, OsImageHash
from dstack.vmm.qemu import (
    Placement,
    PortForward,
    helper_arguments,
    helper_environment,
    mac_address,
    own_qemu_arguments,
    qemu_argv,
)

CONFIG = VmConfig(os_image_hash=OsImageHash(bytes(32)), cpu_count=2, memory_size=2**31)
PLACEMENT = Placement(
    vm_id="11111111-2222-4333-8444-555555555555",
    workdir="/vm",
    firmware="/i/ovmf.fd",
    kernel="/i/bzImage",
    initrd="/i/initrd",
    rootfs="/i/rootfs",
    cmdline="console=ttyS0",
    cid=1000,
    ports=(PortForward("tcp", "127.0.0.1", 8080, 80), PortForward("udp", "127.0.0.1", 51820, 51820)),
    mr_config_id=mr_config_id_v1(ComposeHash(b"c" * 32)),
)
# Everything that can change the machine's devices, one at a time.
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"num_nics": 0},
    {"num_nics": 3},
    {"num_verity_volumes": 2},
    {"host_share_mode": "vhd"},
    {"host_share_mode": "vvfat"},
    {"hotplug_off": True},
    {"pci_hole64_size": 2**40},
    {"cpu_count": 16, "memory_size": 2**36},
)


def kinds(argv: list[str]) -> list[str]:
    """The kinds of PCI devices, in the order of the command line; whatever shares files is `share`."""
    found = []
    for flag, value in itertools.pairwise(argv):
        if flag == "-virtfs" or value == "virtio-blk-pci,drive=hd2":
            found.append("share")
        elif flag == "-device":
            found.append(value.partition(",")[0])
    return found


def host(config: VmConfig) -> list[str]:
    """The host's command line, with as many volumes as the config says."""
    volumes = tuple(f"/vol{number}" for number in range(config.num_verity_volumes))
    return qemu_argv(config, replace(PLACEMENT, volumes=volumes))


@pytest.mark.parametrize("change", SHAPES, ids=str)
def test_host_and_laptop_have_the_same_places_on_the_bus(change: dict[str, Any]) -> None:
    """As many devices, network cards at the same places, and the same globals, processors and memory."""
    config = replace(CONFIG, **change)
    theirs, ours = host(config), own_qemu_arguments(config)

    names = {"virtio-net-pci": "net"}
    assert [names.get(kind, "other") for kind in kinds(theirs)] == [names.get(kind, "other") for kind in kinds(ours)]
    for flag in ("-global", "-smp", "-m"):
        assert [value for name, value in itertools.pairwise(theirs) if name == flag] == [
            value for name, value in itertools.pairwise(ours) if name == flag
        ]


def test_the_hosts_devices_are_in_the_measured_order() -> None:
    """Root disk, data disk, volumes, network cards, vsock, share."""
    config = replace(CONFIG, num_nics=2, num_verity_volumes=1)

    assert kinds(host(config)) == [
        *("virtio-blk-pci", "virtio-blk-pci", "virtio-blk-pci", "virtio-net-pci", "virtio-net-pci"),
        *("vhost-vsock-pci", "share"),
    ]


def test_the_machine_is_a_td_bound_to_what_it_should_be() -> None:
    """With MRCONFIGID in base64, the quote service on vsock, and the image's command line untouched."""
    argv = host(CONFIG)

    td = json.loads(argv[argv.index("-object") + 1])
    assert PLACEMENT.mr_config_id is not None
    assert td["mrconfigid"] == b64encode(PLACEMENT.mr_config_id).decode()
    assert td["quote-generation-socket"] == {"type": "vsock", "cid": "2", "port": "4050"}
    assert argv[argv.index("-machine") + 1] == "q35,kernel-irqchip=split,confidential-guest-support=tdx,hpet=off"
    assert argv[-2:] == ["-append", "console=ttyS0"]
    unbound = qemu_argv(CONFIG, replace(PLACEMENT, mr_config_id=None))
    assert "mrconfigid" not in json.loads(unbound[unbound.index("-object") + 1])


def test_only_the_first_card_leads_into_the_guest() -> None:
    """Ports of the host are forwarded once."""
    argv = host(replace(CONFIG, num_nics=2))

    first, second = (value for flag, value in itertools.pairwise(argv) if flag == "-netdev")
    assert first.endswith("hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp:127.0.0.1:51820-:51820")
    assert "hostfwd" not in second


def test_mac_addresses_follow_from_the_vm() -> None:
    """Each card has its own; a prefix is kept, as a local and single address."""
    assert mac_address(PLACEMENT.vm_id, 0) == "ce:4c:47:32:fd:3b"
    assert mac_address(PLACEMENT.vm_id, 1) == "96:34:c8:11:ed:72"
    assert mac_address(PLACEMENT.vm_id, 0, bytes.fromhex("525400")) == "52:54:00:cf:4c:47"
    assert mac_address(PLACEMENT.vm_id, 0, b"\x03") == "02:cf:4c:47:32:fd"
    with pytest.raises(MeasurementMalformedError, match="MAC prefix: want at most 3 bytes, got 4"):
        mac_address(PLACEMENT.vm_id, 0, bytes(4))


@pytest.mark.parametrize(("version", "pic"), [("8.2.2", "on"), ("9.0.0", "off"), (None, "off"), ("10.1.0", "off")])
def test_the_interrupt_controller_follows_from_the_version(version: str | None, pic: str) -> None:
    """Unless the config says otherwise."""
    config = replace(CONFIG, qemu_version=version)

    def machine(config: VmConfig) -> str:
        argv = own_qemu_arguments(config)
        return argv[argv.index("-machine") + 1]

    assert f",pic={pic}," in machine(config)
    assert ",pic=on," in machine(replace(config, pic=True))


def test_the_helper_gets_devices_in_its_own_order() -> None:
    """As the reference calls it: data disk first, root disk last, then NUMA and what is passed through."""
    config = replace(CONFIG, hugepages=True, num_gpus=1, num_nvswitches=1, qemu_version="9.2.1", pci_hole64_size=2**40)

    argv = helper_arguments(config, firmware="/i/ovmf.fd", kernel="/i/bzImage")

    assert kinds(argv) == [
        *("virtio-blk-pci", "virtio-net-pci", "vhost-vsock-pci", "share", "virtio-blk-pci"),
        *("pxb-pcie", "pcie-root-port", "vfio-pci", "pcie-root-port", "vfio-pci"),
    ]
    assert argv[argv.index("-machine") + 1].endswith("confidential-guest-support=tdx,hpet=off,smm=off,pic=off")
    assert argv[-2:] == ["-global", "q35-pcihost.pci-hole64-size=0x10000000000"]
    assert "pcie-root-port,id=pci.0,bus=pcie.node0,chassis=0" in argv
    assert "pcie-root-port,id=pci.1,bus=pcie.0,chassis=1" in argv
    assert helper_environment(config) == {"QEMU_ACPI_COMPAT_VER": "9.2.1"}
    assert helper_environment(CONFIG) == {"QEMU_ACPI_COMPAT_VER": "9.1.0"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swtpm": True}, "swtpm"),
        ({"ovmf_variant": "new"}, "ovmf_variant"),
        ({"cpu_count": 0}, "cpu_count: want at least one"),
        ({"cpu_count": 2**32 - 1}, "cpu_count: want at most 4096"),
        ({"num_nics": 9}, "num_nics: want at most 8, got 9"),
        ({"num_verity_volumes": 2**32 - 1}, "num_verity_volumes: want at most 16"),
        ({"num_gpus": 17}, "num_gpus: want at most 16"),
        ({"host_share_mode": "nfs"}, "host_share_mode: want one of 9p, vvfat, vhd, got 'nfs'"),
        ({"memory_size": 2**31 + 4096}, "memory_size: want whole MiB"),
        ({"qemu_version": "7.2.0"}, "qemu_version: want 8.0.0 or later"),
    ],
)
def test_shapes_that_cannot_be_written_are_refused(change: dict[str, Any], message: str) -> None:
    """A stranger's VM config does not make a command line of millions of arguments."""
    config = replace(CONFIG, **change)

    with pytest.raises(MeasurementMalformedError, match=message):
        own_qemu_arguments(config)
    with pytest.raises(MeasurementMalformedError, match=message):
        helper_arguments(config, firmware="f", kernel="k")


@pytest.mark.parametrize("change", [{"hugepages": True}, {"num_gpus": 1}, {"num_nvswitches": 1}])
def test_what_needs_the_hosts_hardware_has_no_stand_in(change: dict[str, Any]) -> None:
    """It is refused by name, and not left out."""
    config = replace(CONFIG, **change)

    with pytest.raises(MeasurementMalformedError, match="own-qemu: huge pages, GPUs and NVSwitches have no stand-in"):
        own_qemu_arguments(config)
    with pytest.raises(MeasurementMalformedError, match="a host's command line for them is not written yet"):
        qemu_argv(config, PLACEMENT)


def test_volumes_must_be_as_many_as_are_measured() -> None:
    """The VM config counts them."""
    with pytest.raises(MeasurementMalformedError, match="want 1 verity volumes, got 0"):
        qemu_argv(replace(CONFIG, num_verity_volumes=1), PLACEMENT)
