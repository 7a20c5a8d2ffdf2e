"""NOT PRODUCTION. An OS image of stand-in files, with the measurement document a real image carries.

Nothing boots from its firmware, kernel and initrd, but they have the forms of real ones, and the document is measured
from them: measuring, verifying, appraising and allowing the image work as with a real one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256, sha384
from pathlib import Path
from typing import Final, Self

from dstack.errors import InputError, MeasurementMalformedError
from dstack.measurement.acpi import ACPI_NAMES
from dstack.measurement.document import (
    DOCUMENT_NAME,
    MeasurementDocument,
    make_document,
    parse_measurement_document,
    reference_boot_events,
    serialise_measurement_document,
)
from dstack.measurement.event_log import Event
from dstack.measurement.image import CHECKSUM_FILE_NAME, os_image_hash, parse_checksum_file
from dstack.measurement.machine import ImageFiles
from dstack.measurement.vm_config import VmConfig
from dstack.simulator.image_parts import make_firmware, make_kernel
from dstack.values import OsImageHash, Register

GIB: Final = 1024**3
DEFAULT_NAME = "dstack-simulated-0.1"

_FIRMWARE, _KERNEL, _INITRD, _METADATA = "ovmf.fd", "bzImage", "initramfs.cpio.gz", "metadata.json"
_LISTED = (_FIRMWARE, _KERNEL, _INITRD, _METADATA, DOCUMENT_NAME)
_DIGEST_FILE = "digest.txt"
_QEMU_VERSION = "9.1.0"
_MAX_FILE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SimulatedImage:
    """The files of an image, by name."""

    files: Mapping[str, bytes]

    @property
    def os_image_hash(self) -> OsImageHash:
        """What the chain must allow for this image to run."""
        return os_image_hash(self.files[CHECKSUM_FILE_NAME])

    @property
    def document(self) -> MeasurementDocument:
        """The digests of its parts."""
        return parse_measurement_document(self.files[DOCUMENT_NAME])

    def vm_config(self, *, memory_size: int = 2 * GIB, cpu_count: int = 2) -> VmConfig:
        """The config of a VM that runs it; *memory_size* in bytes."""
        return VmConfig(
            os_image_hash=self.os_image_hash,
            cpu_count=cpu_count,
            memory_size=memory_size,
            qemu_version=_QEMU_VERSION,
            tdx_attestation_variant="lite",
            checksum_file=self.files[CHECKSUM_FILE_NAME],
            measurement=self.files[DOCUMENT_NAME],
        )

    def mr_td(self, config: VmConfig) -> Register:
        """MRTD of a VM of this shape."""
        return self.document.mrtd_two_pass if config.two_pass else self.document.mrtd_single_pass

    def boot_log(self, config: VmConfig) -> tuple[Event, ...]:
        """What a VM of this shape extends into RTMR0 to RTMR2."""
        return reference_boot_events(self.document, config, acpi_digests(config))

    def save(self, folder: Path) -> None:
        """Write its files into *folder*."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: A file is missing, too large, or not the one that sha256sum.txt lists.
        """
        checksums = _read(folder, CHECKSUM_FILE_NAME)
        listed = parse_checksum_file(checksums)
        files = {CHECKSUM_FILE_NAME: checksums, _DIGEST_FILE: _read(folder, _DIGEST_FILE)}
        for name in _LISTED:
            files[name] = _read(folder, name)
            if sha256(files[name]).digest() != listed.get(name):
                raise MeasurementMalformedError(f"image: {CHECKSUM_FILE_NAME} does not list this {name}")
        return cls(files)


def make_image(name: str = DEFAULT_NAME) -> SimulatedImage:
    """Make an image whose every byte follows from *name*."""
    rootfs_hash = sha256(f"stand-in for the root file system of {name}\n".encode()).hexdigest()
    parts = ImageFiles(
        firmware=make_firmware(name.encode()),
        kernel=make_kernel(name.encode()),
        initrd=f"stand-in for {_INITRD} of {name}\n".encode(),
        cmdline=f"console=ttyS0 dstack.rootfs_hash={rootfs_hash}",
    )
    metadata = {"bios": _FIRMWARE, "kernel": _KERNEL, "initrd": _INITRD, "cmdline": parts.cmdline, "version": name}
    files = {
        _FIRMWARE: parts.firmware,
        _KERNEL: parts.kernel,
        _INITRD: parts.initrd,
        _METADATA: json.dumps(metadata, indent=4).encode(),
        DOCUMENT_NAME: serialise_measurement_document(make_document(parts)),
    }
    checksums = "".join(f"{sha256(files[part]).hexdigest()}  {part}\n" for part in _LISTED).encode()
    digest = os_image_hash(checksums).hex().encode()
    return SimulatedImage({**files, CHECKSUM_FILE_NAME: checksums, _DIGEST_FILE: digest})


def acpi_digests(config: VmConfig) -> dict[str, Register]:
    """Digests of the ACPI tables that a VM of this shape is given: stand-ins, one set per shape."""
    shape = f"{config.cpu_count} CPUs, {config.memory_size} bytes of memory"
    return {name: Register(sha384(f"stand-in for {name}: {shape}\n".encode()).digest()) for name in ACPI_NAMES}


def _read(folder: Path, name: str) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as exc:
        raise InputError(f"image: want {name} in {folder}, got: {exc.strerror}") from exc
    if len(content) > _MAX_FILE:
        raise InputError(f"image: {name}: want at most {_MAX_FILE} bytes")
    return content
