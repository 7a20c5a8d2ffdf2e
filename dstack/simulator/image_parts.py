"""NOT PRODUCTION. The parts of a simulated OS image, in the forms of real ones; nothing boots from them.

Firmware with TDX metadata and an empty variable store, and a kernel that is a PE file with Linux's setup header: what
measures a real image measures these.
"""

from __future__ import annotations

import struct
from hashlib import shake_256
from typing import Final

from dstack.measurement.td_hob import PAGE

_VARIABLES_SIZE: Final = 0x84000
_CODE_SIZE: Final = 0x4000
_METADATA_AT: Final = 0x400
# An EDK2 variable store with nothing in it: the headers of its volume, store and spare block; the rest is erased flash.
_VARIABLES_HEADER: Final = bytes.fromhex(
    "000000000000000000000000000000008d2bf1ff96768b4ca9852747075b4f5000400800000000005f465648fffe04004800afb800000002"
    "84000000001000000000000000000000782cf3aa7b949a43a1802e144ec37792b8ff03005afe000000000000"
)
_SPARE_AT: Final = 0x41000
_SPARE_HEADER: Final = bytes.fromhex("2b29589e687c7d49a0ce6500fd9f1b952caf2c64feffffffe00f000000000000")
_FOOTER: Final = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
_METADATA: Final = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")
# Address, memory size, type and attributes of the sections without content: what dstack's own firmware accepts.
_PLAIN_SECTIONS: Final = (
    (0x800000, 0x6000, 3),
    (0x809000, 0x2000, 2),
    (0x80B000, 0x2000, 3),
    (0x810000, 0x10000, 3),
)

_KERNEL_SIZE: Final = 4 * PAGE
_HEADERS: Final = 0x400
_PE_AT: Final = 0x250


def make_firmware(seed: bytes, *, code_size: int = _CODE_SIZE) -> bytes:
    """A flash image whose *code_size* bytes of code (whole pages) follow from *seed*."""
    variables = bytearray(b"\xff" * _VARIABLES_SIZE)
    variables[: len(_VARIABLES_HEADER)] = _VARIABLES_HEADER
    variables[_SPARE_AT : _SPARE_AT + len(_SPARE_HEADER)] = _SPARE_HEADER
    code = bytearray(shake_256(b"firmware:" + seed).digest(code_size))
    end = 2**32
    sections = [
        struct.pack("<IIQQII", _VARIABLES_SIZE, code_size, end - code_size, code_size, 0, 1),
        struct.pack("<IIQQII", 0, _VARIABLES_SIZE, end - code_size - _VARIABLES_SIZE, _VARIABLES_SIZE, 1, 0),
        *(struct.pack("<IIQQII", 0, 0, start, size, kind, 0) for start, size, kind in _PLAIN_SECTIONS),
    ]
    descriptor = struct.pack("<4sIII", b"TDVF", 16 + 32 * len(sections), 1, len(sections)) + b"".join(sections)
    at = code_size - _METADATA_AT
    code[at : at + len(descriptor)] = descriptor
    entry = struct.pack("<IH", _METADATA_AT, 22) + _METADATA
    table = entry + struct.pack("<H", len(entry) + 18) + _FOOTER
    code[code_size - 32 - len(table) : code_size - 32] = table
    return bytes(variables + code)


def make_kernel(seed: bytes, *, size: int = _KERNEL_SIZE) -> bytes:
    """A bzImage of *size* bytes, with one section whose content follows from *seed*."""
    raw = bytearray(shake_256(b"kernel:" + seed).digest(size))
    raw[:2], raw[60:64] = b"MZ", _PE_AT.to_bytes(4, "little")
    optional = bytearray(112 + 16 * 8)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<I", optional, 60, _HEADERS)
    struct.pack_into("<I", optional, 108, 16)
    section = struct.pack("<8sIIII16x", b".text", size - _HEADERS, _HEADERS, size - _HEADERS, _HEADERS)
    header = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, len(optional), 0x22E)
    raw[_PE_AT : _PE_AT + len(header) + len(optional) + len(section)] = header + optional + section
    # Linux boot protocol 2.15: loaded high, initrd anywhere below 4 GiB.
    raw[0x202:0x208], raw[0x211], raw[0x236:0x238] = b"HdrS\x0f\x02", 1, b"\x40\x00"
    return bytes(raw)
