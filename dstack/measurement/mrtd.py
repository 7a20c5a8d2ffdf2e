"""MRTD: what the TDX module makes of the firmware as a VM is built (measurement.md 2.2).

One SHA-384 stream of 128-byte records: the address of every page, and the address of every 256 bytes of measured
content with these bytes behind it. Nothing but the firmware's bytes and the order of the records goes in.
"""

from __future__ import annotations

import struct
from hashlib import sha384

from dstack.measurement.td_hob import PAGE
from dstack.measurement.tdvf import Firmware, Section
from dstack.values import Register

_CHUNK = 256
_ADD = struct.Struct("<16sQ104x")
_EXTEND = struct.Struct(f"<16sQ104x{_CHUNK}s")
_PAGE_RECORDS = _EXTEND.size * PAGE // _CHUNK


def mrtd(firmware: Firmware, *, two_pass: bool) -> Register:
    """Compute MRTD.

    Args:
        firmware: The image.
        two_pass: Whether all pages of a section are added before the first is extended, as QEMU 8 does it; later
            releases extend each page as they add it. Not the wire's `qemu_single_pass_add_pages`: see `VmConfig`.
    """
    digest = sha384()
    for section in firmware.sections:
        # A few large buffers: one update for each of 15,000 chunks would cost ten times the hashing.
        adds, extends = _adds(section), _extends(firmware, section)
        if two_pass or not (adds and extends):
            digest.update(b"".join(adds))
            digest.update(extends)
            continue
        records = memoryview(extends)
        for number, add in enumerate(adds):
            digest.update(add)
            digest.update(records[number * _PAGE_RECORDS : (number + 1) * _PAGE_RECORDS])
    return Register(digest.digest())


def _adds(section: Section) -> list[bytes]:
    if not section.added:
        return []
    return [_ADD.pack(b"MEM.PAGE.ADD", gpa) for gpa in range(section.gpa, section.gpa + section.mem_size, PAGE)]


def _extends(firmware: Firmware, section: Section) -> bytes:
    if not section.extended:
        return b""
    data = memoryview(firmware.raw)[section.data_offset : section.data_offset + section.raw_size]
    addresses = range(section.gpa, section.gpa + section.mem_size, _CHUNK)
    chunks = struct.iter_unpack(f"{_CHUNK}s", data)
    return b"".join(_EXTEND.pack(b"MR.EXTEND", gpa, chunk) for gpa, (chunk,) in zip(addresses, chunks, strict=True))
