"""A Linux kernel as QEMU hands it to firmware: the fields of its setup header that QEMU fills in (measurement.md 4).

Source: QEMU's `x86_load_linux` and Linux's boot protocol (Documentation/arch/x86/boot.rst). The result depends on the
kernel, the size of the initrd and the size of memory, not on the command line's text.
"""

from __future__ import annotations

import struct

from dstack.errors import MeasurementMalformedError
from dstack.measurement.authenticode import MAX_PE, authenticode_sha384
from dstack.measurement.td_hob import HIGH_MEMORY, LOW_MEMORY_END
from dstack.values import Register

MIN_KERNEL = 0x1000
# Memory that QEMU keeps free for ACPI tables when it places an initrd.
_ACPI_DATA_SIZE = 0x28000
_DEFAULT_INITRD_MAX = 0x37FF_FFFF
_LOADER_TYPE_QEMU = 0xB0
_LOADED_HIGH = 0x01
_CAN_USE_HEAP = 0x80
_CAN_BE_LOADED_ABOVE_4G = 1 << 6


def kernel_digest(kernel: bytes, *, initrd_size: int, memory_size: int) -> Register:
    """Digest a kernel as firmware measures it into RTMR1: patched by QEMU, in the manner of Authenticode.

    Args:
        kernel: The bzImage file.
        initrd_size: Bytes; 0 for none.
        memory_size: Bytes of guest memory.

    Raises:
        MeasurementMalformedError: Not a kernel, or an initrd that does not fit.
    """
    return authenticode_sha384(patched_kernel(kernel, initrd_size=initrd_size, memory_size=memory_size))


def patched_kernel(kernel: bytes, *, initrd_size: int, memory_size: int) -> bytearray:
    """Write into a kernel's setup header what QEMU writes; sizes in bytes, as in `kernel_digest`.

    Raises:
        MeasurementMalformedError: See `kernel_digest`.
    """
    if not MIN_KERNEL <= len(kernel) <= MAX_PE:
        raise _malformed(f"want {MIN_KERNEL} to {MAX_PE} bytes, got {len(kernel)}")
    patched = bytearray(kernel)
    protocol = _protocol(kernel)
    low = protocol < 0x200 or not kernel[0x211] & _LOADED_HIGH
    real, cmdline = (0x90000, 0x9A000) if low else (0x10000, 0x20000)
    if protocol >= 0x200:
        patched[0x210] = _LOADER_TYPE_QEMU
    if protocol >= 0x201:
        patched[0x211] |= _CAN_USE_HEAP
        # heap_end_ptr is two bytes; QEMU and dstack write four.
        struct.pack_into("<I", patched, 0x224, cmdline - real - 0x200)
    if protocol >= 0x202:
        struct.pack_into("<I", patched, 0x228, cmdline)
    else:
        # Two bytes: of 0x10000, for a kernel that is loaded high, nothing is left.
        struct.pack_into("<HH", patched, 0x20, 0xA33F, (cmdline - real) & 0xFFFF)
    if initrd_size:
        address = initrd_address(kernel, initrd_size=initrd_size, memory_size=memory_size)
        struct.pack_into("<II", patched, 0x218, address, initrd_size)
    return patched


def initrd_address(kernel: bytes, *, initrd_size: int, memory_size: int) -> int:
    """Say where in guest memory QEMU puts the initrd: its physical address. Sizes are in bytes.

    Raises:
        MeasurementMalformedError: It does not fit, or the kernel is too old for one.
    """
    protocol = _protocol(kernel)
    if protocol < 0x200:
        raise _malformed(f"want boot protocol 2.00 or later for an initrd, got {protocol:#x}")
    low_memory = HIGH_MEMORY if memory_size < HIGH_MEMORY else LOW_MEMORY_END
    available = min(memory_size, low_memory) - _ACPI_DATA_SIZE
    if available < 0:
        raise MeasurementMalformedError(f"memory size: want at least {_ACPI_DATA_SIZE} bytes, got {memory_size}")
    limit = _initrd_max(kernel, protocol)
    if limit >= available:
        limit = available - 1
    if not 0 < initrd_size < limit:
        raise MeasurementMalformedError(f"initrd: want 1 to {limit - 1} bytes for this memory, got {initrd_size}")
    return (limit - initrd_size) & ~0xFFF


def _initrd_max(kernel: bytes, protocol: int) -> int:
    if protocol >= 0x20C:
        above = int.from_bytes(kernel[0x236:0x238], "little") & _CAN_BE_LOADED_ABOVE_4G
        return 0xFFFF_FFFF if above else _DEFAULT_INITRD_MAX
    if protocol >= 0x203:
        return int.from_bytes(kernel[0x22C:0x230], "little") or _DEFAULT_INITRD_MAX
    return _DEFAULT_INITRD_MAX


def _protocol(kernel: bytes) -> int:
    if len(kernel) < MIN_KERNEL:
        raise _malformed(f"want at least {MIN_KERNEL} bytes, got {len(kernel)}")
    protocol = int.from_bytes(kernel[0x206:0x208], "little")
    # QEMU asks for the mark, dstack's reference does not; where they would differ nothing is computed.
    if protocol >= 0x200 and kernel[0x202:0x206] != b"HdrS":
        raise _malformed(f"want the mark HdrS of boot protocol {protocol:#x}, got {kernel[0x202:0x206].hex()}")
    return protocol


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"kernel: {message}")
