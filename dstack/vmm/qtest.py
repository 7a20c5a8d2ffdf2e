"""ACPI blobs out of a stock QEMU that never runs a guest (measurement.md 3.4).

QEMU is started paused and driven through its test protocol: what firmware would have programmed is programmed, and the
files of fw_cfg are read through their DMA interface. It takes about 0.1 s and neither TDX nor root.
Sources: QEMU's docs/specs/fw_cfg.rst and docs/devel/testing/qtest.rst.
"""

from __future__ import annotations

import struct
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from dstack.errors import MeasurementMalformedError, ToolUnavailableError
from dstack.measurement.acpi import MAX_TABLES_BLOB, AcpiBlobs, AcpiDigests, AcpiSource, checked_acpi_blobs
from dstack.measurement.vm_config import VmConfig
from dstack.vmm.programs import bounded_output, close, end, start
from dstack.vmm.qemu import own_qemu_arguments

DEFAULT_QEMU = "qemu-system-x86_64"
SECONDS = 20.0

_HARNESS = ("-accel", "tcg", "-S", "-display", "none", "-nodefaults", "-qtest", "stdio", "-qtest-log", "/dev/null")
_MAX_LINE = 2 * MAX_TABLES_BLOB + 64
_MAX_FILES = 256
_MAX_VERSION = 64 * 1024
_MAX_COMPLAINTS = 50
# Where the DMA descriptor and what is read lie in the guest's memory.
_DESCRIPTOR_AT, _DATA_AT = 0x1000, 0x100000
_SELECT, _READ = 8, 2
_DIRECTORY = 0x19
_DIRECTORY_ENTRY = struct.Struct(">IHxx56s")
# PCI configuration that firmware writes before it reads the tables: register, value. They show in MCFG and FACP.
_PROGRAMMED = (
    (0x8000_0064, 0),
    (0x8000_0060, 0xE000_0001),  # PCIEXBAR of the host bridge, enabled
    (0x8000_F840, 0x601),  # PMBASE of the LPC bridge
    (0x8000_F844, 0x80),  # ACPI enabled there
)


def own_qemu_digests(config: VmConfig, *, qemu: str = DEFAULT_QEMU) -> AcpiDigests:
    """Get the ACPI digests of a machine from the QEMU of this computer.

    They are those of hosts that run this same QEMU, unpatched.

    Raises:
        MeasurementMalformedError: A shape that has no stand-in, or blobs that do not belong together.
        ToolUnavailableError: There is no such QEMU, or it did not answer.
    """
    version = qemu_version(qemu)
    blobs = own_qemu_blobs(config, qemu=qemu)
    return AcpiDigests(blobs.digests, AcpiSource.OWN_QEMU, version, blobs)


def own_qemu_blobs(config: VmConfig, *, qemu: str = DEFAULT_QEMU) -> AcpiBlobs:
    """Get the ACPI blobs; see `own_qemu_digests`."""
    return paused_qemu_blobs(own_qemu_arguments(config), qemu=qemu)


def paused_qemu_blobs(arguments: Sequence[str], *, qemu: str = DEFAULT_QEMU, seconds: float = SECONDS) -> AcpiBlobs:
    """Start QEMU paused with these arguments, and read its ACPI blobs.

    Args:
        arguments: Machine and devices; what drives the test protocol is added.
        qemu: Program.
        seconds: How long it may take.

    Raises:
        MeasurementMalformedError: The blobs do not belong together.
        ToolUnavailableError: It did not start, refused its arguments, or did not answer.
    """
    with _PausedQemu([qemu, *_HARNESS, *arguments], seconds) as machine:
        for register, value in _PROGRAMMED:
            machine.command(f"outl 0xcf8 {register:#x}")
            machine.command(f"outl 0xcfc {value:#x}")
        files = machine.directory()
        tables, rsdp, loader = (
            machine.file(files, name) for name in ("etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader")
        )
    return checked_acpi_blobs(tables, rsdp, loader)


def qemu_version(qemu: str = DEFAULT_QEMU) -> str:
    """Ask QEMU who it is: the first line of `--version`.

    Raises:
        ToolUnavailableError: There is no such program, or it did not answer.
    """
    answer = bounded_output([qemu, "--version"], limit=_MAX_VERSION, seconds=SECONDS)
    return answer.decode(errors="replace").partition("\n")[0][:200]


class _PausedQemu:
    """One QEMU, spoken to over its standard input and output; killed at the end, or after some seconds."""

    def __init__(self, argv: Sequence[str], seconds: float) -> None:
        self._argv, self._seconds = argv, seconds

    def __enter__(self) -> Self:
        self._process = start(self._argv, stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._killer = threading.Timer(self._seconds, end, [self._process])
        self._killer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._killer.cancel()
        end(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            close(stream)
        self._process.wait()

    def command(self, line: str) -> str:
        """Send one command, and give what follows `OK`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said: list[str] = []
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
            while answer := self._process.stdout.readline(_MAX_LINE):
                text = answer.decode(errors="replace").strip()
                if text == "OK" or text.startswith("OK "):
                    return text[3:]
                said.append(text[:300])
                if len(said) > _MAX_COMPLAINTS:
                    break
        except OSError:
            pass
        reason = f"it ended, or was silent for {self._seconds:g} s"
        raise ToolUnavailableError(f"{self._argv[0]}: {reason}: {' '.join(said)[:600]!r}")

    def read(self, select: int, size: int) -> bytes:
        """Read the start of a fw_cfg file."""
        descriptor = struct.pack(">IIQ", select << 16 | _SELECT | _READ, size, _DATA_AT)
        self.command(f"write {_DESCRIPTOR_AT:#x} {len(descriptor):#x} 0x{descriptor.hex()}")
        # The address is written as two big-endian words; the second starts the transfer.
        self.command("outl 0x514 0x0")
        self.command(f"outl 0x518 {int.from_bytes(_DESCRIPTOR_AT.to_bytes(4, 'big'), 'little'):#x}")
        if any(self._memory(_DESCRIPTOR_AT, 4)):
            raise ToolUnavailableError(f"{self._argv[0]}: fw_cfg did not hand out file {select:#x}")
        return self._memory(_DATA_AT, size)

    def _memory(self, at: int, size: int) -> bytes:
        answer = self.command(f"read {at:#x} {size:#x}").removeprefix("0x")
        try:
            content = bytes.fromhex(answer)
        except ValueError as exc:
            raise ToolUnavailableError(f"{self._argv[0]}: want hexadecimal, got {answer[:80]!r}") from exc
        if len(content) != size:
            raise ToolUnavailableError(f"{self._argv[0]}: want {size} bytes at {at:#x}, got {len(content)}")
        return content

    def directory(self) -> dict[str, tuple[int, int]]:
        """List fw_cfg's files: selector and size by name."""
        count = int.from_bytes(self.read(_DIRECTORY, 4), "big")
        if count > _MAX_FILES:
            raise ToolUnavailableError(f"{self._argv[0]}: want at most {_MAX_FILES} files in fw_cfg, got {count}")
        entries = self.read(_DIRECTORY, 4 + count * _DIRECTORY_ENTRY.size)[4:]
        listed = _DIRECTORY_ENTRY.iter_unpack(entries)
        return {name.rstrip(b"\0").decode(errors="replace"): (select, size) for size, select, name in listed}

    def file(self, files: dict[str, tuple[int, int]], name: str) -> bytes:
        """Read one file whole."""
        if name not in files:
            raise MeasurementMalformedError(f"own-qemu: {name}: this QEMU has no such file in fw_cfg")
        select, size = files[name]
        if size > MAX_TABLES_BLOB:
            raise MeasurementMalformedError(f"own-qemu: {name}: want at most {MAX_TABLES_BLOB} bytes, got {size}")
        return self.read(select, size)
