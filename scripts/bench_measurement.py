"""A whole image measured, against hashing the same bytes once: firmware 4 MiB, kernel 12 MiB, initrd 32 MiB."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256, sha384
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from dstack.cli.image_folder import read_image
from dstack.measurement.acpi import ACPI_NAMES, AcpiDigests, AcpiSource
from dstack.measurement.image import CHECKSUM_FILE_NAME, METADATA_NAME
from dstack.measurement.machine import ImageFiles, image_digests, predict_boot
from dstack.measurement.mrtd import mrtd
from dstack.measurement.tdvf import parse_firmware
from dstack.measurement.vm_config import VmConfig
from dstack.simulator.image_parts import make_firmware, make_kernel
from dstack.values import OsImageHash, Register

_MIB = 1024 * 1024
_CONFIG = VmConfig(os_image_hash=OsImageHash(bytes(32)), cpu_count=2, memory_size=4 * 1024 * _MIB)
_ACPI = AcpiDigests(
    MappingProxyType({name: Register(bytes(48)) for name in ACPI_NAMES}), AcpiSource.CAPTURED, "made for this"
)


def measure(seconds: float) -> dict[str, Any]:
    """Milliseconds, medians over about *seconds* each, taken in turns so that other work disturbs both alike."""
    files = ImageFiles(
        firmware=make_firmware(b"bench", code_size=4 * _MIB - 0x84000),
        kernel=make_kernel(b"bench", size=12 * _MIB),
        initrd=bytes(range(256)) * (32 * _MIB // 256),
        cmdline="console=ttyS0",
    )
    firmware = parse_firmware(files.firmware)
    with tempfile.TemporaryDirectory() as folder:
        _save(files, Path(folder))
        times = _in_turns(
            seconds,
            {
                "hash_once": lambda: _hash_once(files),
                "measured": lambda: predict_boot(image_digests(files, _CONFIG), _CONFIG, _ACPI).registers,
                "hash_once_from_disk": lambda: _hash_files(Path(folder)),
                "measured_and_checked_from_disk": lambda: _from_disk(Path(folder)),
                "mrtd_single_pass": lambda: mrtd(firmware, two_pass=False),
                "mrtd_two_pass": lambda: mrtd(firmware, two_pass=True),
            },
        )
    return {
        **{name: round(value, 1) for name, value in times.items()},
        "ratio": round(times["measured"] / times["hash_once"], 2),
        "ratio_from_disk": round(times["measured_and_checked_from_disk"] / times["hash_once_from_disk"], 2),
    }


def _in_turns(seconds: float, operations: dict[str, Callable[[], object]]) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in operations}
    ends = time.perf_counter() + seconds * len(operations)
    while time.perf_counter() < ends or not all(taken.values()):
        for name, operation in operations.items():
            began = time.perf_counter()
            operation()
            taken[name].append((time.perf_counter() - began) * 1000)
    return {name: median(values) for name, values in taken.items()}


def _hash_once(files: ImageFiles) -> None:
    for content in (files.firmware, files.kernel, files.initrd):
        sha384(content).digest()


def _hash_files(folder: Path) -> None:
    for name in ("ovmf.fd", "bzImage", "initrd"):
        sha384((folder / name).read_bytes()).digest()


def _from_disk(folder: Path) -> object:
    """As `dstack measure` does: read, compare with sha256sum.txt on one core, measure on another."""
    image = read_image(folder)
    with ThreadPoolExecutor(1) as pool:
        checked = image.check_beside(pool)
        digests = image_digests(image.files, _CONFIG)
        checked.result()
    return predict_boot(digests, _CONFIG, _ACPI).registers


def _save(files: ImageFiles, folder: Path) -> None:
    metadata = {"bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initrd", "cmdline": files.cmdline}
    contents = {
        "ovmf.fd": files.firmware,
        "bzImage": files.kernel,
        "initrd": files.initrd,
        METADATA_NAME: json.dumps(metadata).encode(),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    lines = "".join(f"{sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    (folder / CHECKSUM_FILE_NAME).write_text(lines)
