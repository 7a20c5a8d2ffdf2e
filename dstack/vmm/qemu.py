"""QEMU command lines from a `VmConfig` (vmm.md 4): the host's, and those that only ask for ACPI tables.

The order of PCI devices is measured, through the ACPI tables, into RTMR0: root disk, data disk, verity volumes, network
cards, vsock, host share, then what is passed through. Every command line here keeps to it.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from dstack.errors import MeasurementMalformedError
from dstack.measurement.machine import check_shape
from dstack.measurement.vm_config import DEFAULT_QEMU_VERSION, VmConfig
from dstack.values import Register

MIB = 1024 * 1024
SHARE_MODES = ("9p", "vvfat", "vhd")
# q35 has 31 places on its root bus; a hostile VM config must not make a command line of millions of arguments.
MAX_CPUS, MAX_NICS, MAX_VOLUMES, MAX_GPUS = 4096, 8, 16, 16
_HOTPLUG_OFF = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"


@dataclass(frozen=True, slots=True)
class PortForward:
    """One port of the host that leads to the guest: `tcp` or `udp`."""

    protocol: str
    host_address: str
    host_port: int
    vm_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a host chooses for one VM and nothing measures; paths are the host's.

    Attributes:
        vm_id: UUID; MAC addresses follow from it.
        workdir: Of this VM.
        firmware: Path.
        kernel: Path.
        initrd: Path.
        rootfs: Path.
        cmdline: Of the kernel; this is measured, and comes from the image.
        cid: Address on the host's vsock.
        ports: Forwarded to the guest.
        volumes: Paths of verity volumes, as many as the VM config says.
        mr_config_id: What the machine is bound to; None for nothing.
        qgs_port: The quote generation service, on the host's vsock.
        qemu: Program.
        mac_prefix: Up to 3 bytes.
    """

    vm_id: str
    workdir: str
    firmware: str
    kernel: str
    initrd: str
    rootfs: str
    cmdline: str
    cid: int
    ports: tuple[PortForward, ...] = ()
    volumes: tuple[str, ...] = ()
    mr_config_id: Register | None = None
    qgs_port: int = 4050
    qemu: str = "qemu-system-x86_64"
    mac_prefix: bytes = b""


def qemu_argv(config: VmConfig, placement: Placement) -> list[str]:
    """Write the command that a host starts a TDX guest with.

    Huge pages and passed-through devices need facts about the host and are not written yet.

    Raises:
        MeasurementMalformedError: A shape that cannot be written, or a placement that does not fit it.
    """
    _check(config)
    if config.hugepages or config.num_gpus or config.num_nvswitches:
        raise _malformed("huge pages, GPUs and NVSwitches: a host's command line for them is not written yet")
    if len(placement.volumes) != config.num_verity_volumes:
        raise _malformed(f"want {config.num_verity_volumes} verity volumes, got {len(placement.volumes)}")
    workdir = placement.workdir
    console = f"pty,id=com0,path={workdir}/serial.pty,logfile={workdir}/serial.log,logappend=on"
    return [
        *(placement.qemu, "-accel", "kvm", "-cpu", "host", "-nographic", "-nodefaults"),
        *("-chardev", console, "-serial", "chardev:com0"),
        *("-bios", placement.firmware, "-kernel", placement.kernel, "-initrd", placement.initrd),
        *_disk("hd0", f"file={placement.rootfs},if=none,id=hd0,format=raw,readonly=on"),
        *_disk("hd1", f"file={workdir}/hda.img,if=none,id=hd1"),
        *_volumes([f"file={path}" for path in placement.volumes]),
        *_networks(config, placement),
        *("-smbios", "type=1,manufacturer=dstack,product=dstack"),
        *("-device", f"vhost-vsock-pci,guest-cid={placement.cid}"),
        *_share(config, placement),
        *("-machine", "q35,kernel-irqchip=split,confidential-guest-support=tdx,hpet=off"),
        *("-object", _tdx_object(placement)),
        *_globals(config),
        *("-smp", str(config.cpu_count), "-m", f"{config.memory_size // MIB}M", "-append", placement.cmdline),
    ]


def own_qemu_arguments(config: VmConfig) -> list[str]:
    """Write the arguments with which a stock QEMU, paused, has the machine's ACPI tables.

    Devices that need the host's kernel or files have stand-ins in the same place on the bus: a device's place is in
    the tables, and what it does is not. What makes the machine a TD is left out, because it needs TDX; what follows
    from it for the tables (no SMM, no HPET) is said.

    Raises:
        MeasurementMalformedError: A shape whose devices have no stand-in: huge pages, GPUs, NVSwitches.
    """
    _check(config)
    if config.hugepages or config.num_gpus or config.num_nvswitches:
        raise _malformed("own-qemu: huge pages, GPUs and NVSwitches have no stand-in; use captured tables or a helper")
    stand_in = ("-device", "virtio-rng-pci")
    # Root disk, data disk, volumes, vsock and host share: one place each.
    before, after = 2 + config.num_verity_volumes, 2
    networks = ("-device", "virtio-net-pci") * config.num_nics
    size = f"{config.memory_size // MIB}M"
    machine = f"q35,kernel-irqchip=split,hpet=off,smm=off,pic={_switch(config.has_pic)},memory-backend=ram"
    return [
        *(stand_in * before + networks + stand_in * after),
        # A laptop need not have the memory that the tables speak of.
        *("-object", f"memory-backend-ram,id=ram,size={size},reserve=off", "-cpu", "qemu64,phys-bits=52"),
        *("-machine", machine),
        *_globals(config),
        *("-smp", str(config.cpu_count), "-m", size),
    ]


def helper_arguments(config: VmConfig, *, firmware: str, kernel: str) -> list[str]:
    """Write the arguments of a program that prints the tables, as dstack's own is called (measurement.md 3.3).

    Args:
        config: The shape.
        firmware: Path; the program loads it as QEMU would.
        kernel: Path.

    Raises:
        MeasurementMalformedError: A shape that cannot be written.
    """
    _check(config)
    disk = "file=/bin/sh,if=none,id={},format=raw,readonly=on"
    share = ["-virtfs", "local,path=/bin,mount_tag=host-shared,readonly=on,security_model=none,id=virtfs0"]
    machine = "q35,kernel-irqchip=split,confidential-guest-support=tdx,hpet=off,smm=off"
    return [
        *("-cpu", "qemu64", "-smp", str(config.cpu_count), "-m", f"{config.memory_size // MIB}M"),
        *("-nographic", "-nodefaults", "-serial", "stdio", "-bios", firmware, "-kernel", kernel, "-initrd", "/bin/sh"),
        *_disk("hd1", disk.format("hd1")),
        *_volumes(["file=/bin/sh"] * config.num_verity_volumes),
        *(each for n in range(config.num_nics) for each in _network(f"user,id=net{n}", f"netdev=net{n}")),
        *("-object", "tdx-guest,id=tdx", "-device", "vhost-vsock-pci,guest-cid=3"),
        *(share if config.host_share_mode == "9p" else _disk("hd2", disk.format("hd2"))),
        *_disk("hd0", disk.format("hd0")),
        *("-machine", f"{machine},pic={_switch(config.has_pic)}"),
        *_helper_numa(config),
        *_passed_through(config),
        *_globals(config),
    ]


def helper_environment(config: VmConfig) -> dict[str, str]:
    """Name the QEMU version that the external program imitates."""
    return {"QEMU_ACPI_COMPAT_VER": config.qemu_version or DEFAULT_QEMU_VERSION}


def mac_address(vm_id: str, index: int, prefix: bytes = b"") -> str:
    """Name a VM's network card: always a local, single address.

    Args:
        vm_id: UUID as text.
        index: Of the card, from 0.
        prefix: Up to 3 bytes it begins with.
    """
    if len(prefix) > 3:
        raise _malformed(f"MAC prefix: want at most 3 bytes, got {len(prefix)}")
    seed = vm_id if index == 0 else f"{vm_id}:{index}"
    raw = bytearray((prefix + sha256(seed.encode()).digest())[:6])
    raw[0] = raw[0] & 0xFE | 0x02
    return raw.hex(":")


def _check(config: VmConfig) -> None:
    check_shape(config)
    if config.host_share_mode not in SHARE_MODES:
        raise _malformed(f"host_share_mode: want one of {', '.join(SHARE_MODES)}, got {config.host_share_mode[:80]!r}")
    if config.memory_size % MIB or not config.memory_size:
        raise _malformed(f"memory_size: want whole MiB, got {config.memory_size}")
    bounds = (
        ("cpu_count", config.cpu_count, MAX_CPUS),
        ("num_nics", config.num_nics, MAX_NICS),
        ("num_verity_volumes", config.num_verity_volumes, MAX_VOLUMES),
        ("num_gpus", config.num_gpus, MAX_GPUS),
        ("num_nvswitches", config.num_nvswitches, MAX_GPUS),
    )
    for name, value, most in bounds:
        if value > most:
            raise _malformed(f"{name}: want at most {most}, got {value}")


def _disk(name: str, drive: str) -> tuple[str, ...]:
    return "-drive", drive, "-device", f"virtio-blk-pci,drive={name}"


def _volumes(files: list[str]) -> Iterator[str]:
    for number, file in enumerate(files):
        yield from _disk(f"vol{number}", f"{file},if=none,id=vol{number},format=raw,readonly=on")


def _network(netdev: str, device: str) -> tuple[str, ...]:
    return "-netdev", netdev, "-device", f"virtio-net-pci,{device}"


def _networks(config: VmConfig, placement: Placement) -> Iterator[str]:
    for index in range(config.num_nics):
        netdev = f"user,id=net{index},net=10.0.2.0/24,dhcpstart=10.0.2.10,restrict=no"
        # Only the first card leads ports of the host to the guest.
        for port in placement.ports if index == 0 else ():
            netdev += f",hostfwd={port.protocol}:{port.host_address}:{port.host_port}-:{port.vm_port}"
        yield from _network(
            netdev, f"netdev=net{index},mac={mac_address(placement.vm_id, index, placement.mac_prefix)}"
        )


def _share(config: VmConfig, placement: Placement) -> tuple[str, ...]:
    shared = f"{placement.workdir}/shared"
    if config.host_share_mode == "9p":
        mount = "mount_tag=host-shared,readonly=on,security_model=mapped,id=virtfs0"
        return "-virtfs", f"local,path={shared},{mount}"
    source = f"fat:{shared}" if config.host_share_mode == "vvfat" else f"{shared}.img"
    return _disk("hd2", f"file={source},if=none,id=hd2,format=raw,readonly=on")


def _tdx_object(placement: Placement) -> str:
    members: dict[str, object] = {"qom-type": "tdx-guest", "id": "tdx"}
    if placement.mr_config_id is not None:
        members["mrconfigid"] = b64encode(placement.mr_config_id).decode()
    members["quote-generation-socket"] = {"type": "vsock", "cid": "2", "port": str(placement.qgs_port)}
    return json.dumps(members, separators=(",", ":"))


def _globals(config: VmConfig) -> Iterator[str]:
    if config.hotplug_off:
        yield from ("-global", _HOTPLUG_OFF)
    if config.pci_hole64_size:
        yield from ("-global", f"q35-pcihost.pci-hole64-size={config.pci_hole64_size:#x}")


def _helper_numa(config: VmConfig) -> Iterator[str]:
    if not config.hugepages:
        return
    yield from ("-numa", f"node,nodeid=0,cpus=0-{config.cpu_count - 1},memdev=mem0")
    backend = f"memory-backend-file,id=mem0,size={config.memory_size // MIB}M,mem-path=/dev/hugepages"
    yield from ("-object", f"{backend},share=on,prealloc=no,host-nodes=0,policy=bind")


def _passed_through(config: VmConfig) -> Iterator[str]:
    bus = "pcie.0"
    if config.num_gpus:
        yield from ("-object", "iommufd,id=iommufd0")
        if config.hugepages:
            bus = "pcie.node0"
            yield from ("-device", "pxb-pcie,id=pcie.node0,bus=pcie.0,addr=10,numa_node=0,bus_nr=5")
    for port in range(config.num_gpus + config.num_nvswitches):
        root = bus if port < config.num_gpus else "pcie.0"
        yield from ("-device", f"pcie-root-port,id=pci.{port},bus={root},chassis={port}")
        yield from ("-device", f"vfio-pci,host=00:00.0,bus=pci.{port},iommufd=iommufd0")


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"VM config: {message}")
