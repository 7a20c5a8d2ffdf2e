"""Parts of OS images made for tests: firmware with TDX metadata, kernels that are PE files, blobs of ACPI tables.

The measurements that belong to them are computed here a second time, record by record as the specification words it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha384

FOOTER = bytes.fromhex("de82b596b21ff745baeaa366c55a082d")
METADATA = bytes.fromhex("35657ae44a989847865e4685a7bf8ec2")
PAGE = 4096


@dataclass(frozen=True)
class Part:
    """One section as the metadata spells it: data offset, raw size, address, memory size, type, attributes."""

    offset: int
    raw: int
    gpa: int
    mem: int
    kind: int
    attributes: int = 0


CODE = Part(2 * PAGE, 4 * PAGE, 0xFFFF_C000, 4 * PAGE, 0, 1)
VARIABLES = Part(0, 2 * PAGE, 0xFFFF_A000, 2 * PAGE, 1)
TEMPORARY = Part(0, 0, 0x80_0000, 6 * PAGE, 3)
HOB = Part(0, 0, 0x80_9000, 2 * PAGE, 2)
PARTS = (CODE, VARIABLES, TEMPORARY, HOB)


def firmware(parts: Sequence[Part] = PARTS, *, size: int = 6 * PAGE, version: int = 1, **change: bytes | int) -> bytes:
    """A flash image with these sections; *change* replaces `signature`, `footer`, `entry`, `count`, `length`."""
    descriptor = struct.pack(
        "<4sIII",
        change.get("signature", b"TDVF"),
        change.get("length", 16 + 32 * len(parts)),
        version,
        change.get("count", len(parts)),
    )
    for part in parts:
        descriptor += struct.pack("<IIQQII", part.offset, part.raw, part.gpa, part.mem, part.kind, part.attributes)
    at = size - 0x400
    entry = change.get("entry", struct.pack("<IH", change.get("offset", 0x400), 22) + METADATA)
    assert isinstance(entry, bytes)
    table = entry + struct.pack("<H", change.get("table", len(entry) + 18)) + change.get("footer", FOOTER)  # type: ignore[operator]
    raw = bytearray(bytes(n * 7 % 251 for n in range(size)))
    raw[at : at + len(descriptor)] = descriptor
    raw[size - 32 - len(table) : size - 32] = table
    return bytes(raw)


def slow_mrtd(raw: bytes, parts: Sequence[Part], *, two_pass: bool) -> bytes:
    """MRTD by one small update for each record."""
    digest = sha384()

    def add(gpa: int) -> None:
        digest.update(b"MEM.PAGE.ADD".ljust(16, b"\0") + gpa.to_bytes(8, "little") + bytes(104))

    def extend(part: Part, page: int) -> None:
        for chunk in range(page, page + PAGE, 256):
            digest.update(b"MR.EXTEND".ljust(16, b"\0") + (part.gpa + chunk).to_bytes(8, "little") + bytes(104))
            digest.update(raw[part.offset + chunk : part.offset + chunk + 256])

    for part in parts:
        pages = range(0, part.mem, PAGE)
        for page in pages:
            if not part.attributes & 2:
                add(part.gpa + page)
            if part.attributes & 1 and not two_pass:
                extend(part, page)
        if part.attributes & 1 and two_pass:
            for page in pages:
                extend(part, page)
    return digest.digest()


@dataclass(frozen=True)
class Pe:
    """A small bzImage: a PE32+ file with a setup header of Linux in its first 4 KiB.

    Attributes:
        sections: Start and size of each, in the order of the table.
        security: Start and size of the certificate table; None writes zeros.
    """

    size: int = 0x3000
    sections: tuple[tuple[int, int], ...] = ((0x600, 0x1A00), (0x2000, 0x1000))
    security: tuple[int, int] = (0, 0)
    magic: int = 0x20B
    headers: int = 0x600
    directories: int = 16
    protocol: int = 0x20F
    load_flags: int = 1
    above_4g: bool = True
    initrd_max: int = 0x7FFF_FFFF
    pe_at: int = 0x280
    signature: bytes = b"PE\0\0"
    mark: bytes = b"HdrS"
    optional_size: int | None = None

    def but(self, **change: object) -> Pe:
        """The same with something changed."""
        return replace(self, **change)  # type: ignore[arg-type]

    @property
    def optional(self) -> int:
        """Where the optional header is."""
        return self.pe_at + 24

    @property
    def entry(self) -> int:
        """Where the directory entry of the certificate table is."""
        return self.optional + (144 if self.magic == 0x20B else 128)

    def build(self) -> bytes:
        """The file."""
        raw = bytearray(bytes(n * 5 % 253 for n in range(self.size)))
        raw[:2], raw[60:64] = b"MZ", self.pe_at.to_bytes(4, "little")
        base = (112 if self.magic == 0x20B else 96) + 8 * self.directories
        size = base if self.optional_size is None else self.optional_size
        header = struct.pack("<4sHHIIIHH", self.signature, 0x8664, len(self.sections), 0, 0, 0, size, 0)
        raw[self.pe_at : self.pe_at + 24] = header
        raw[self.optional : self.optional + 2] = self.magic.to_bytes(2, "little")
        raw[self.optional + 60 : self.optional + 64] = self.headers.to_bytes(4, "little")
        count = self.optional + (108 if self.magic == 0x20B else 92)
        raw[count : count + 4] = self.directories.to_bytes(4, "little")
        if self.directories > 4:
            raw[self.entry : self.entry + 8] = struct.pack("<II", *self.security)
        for number, (start, length) in enumerate(self.sections):
            at = self.optional + size + 40 * number
            raw[at : at + 40] = struct.pack("<8sIIII16x", b".part", length, start, length, start)
        raw[0x202:0x208] = self.mark + self.protocol.to_bytes(2, "little")
        raw[0x211] = self.load_flags
        raw[0x22C:0x230] = self.initrd_max.to_bytes(4, "little")
        raw[0x236:0x238] = (0x40 if self.above_4g else 0).to_bytes(2, "little")
        return bytes(raw)


def slow_authenticode(raw: bytes, pe: Pe) -> bytes:
    """The digest of a file made by `Pe.build`, from what it was made of."""
    left = raw[: pe.optional + 64] + raw[pe.optional + 68 : pe.entry] + raw[pe.entry + 8 : pe.headers]
    for start, length in sorted(pe.sections):
        left += raw[start : start + length]
    return sha384(left + bytes(-len(raw) % 8)).digest()


def table(signature: bytes, length: int) -> bytes:
    """An ACPI table of that length, with zero checksum."""
    return signature + length.to_bytes(4, "little") + b"\1\0" + b"t" * (length - 10)


def acpi_tables(names: Sequence[bytes] = (b"APIC", b"MCFG", b"WAET"), *, size: int = 0x1000) -> bytes:
    """A blob of FACS, DSDT, FACP, *names* and RSDT as QEMU lays them out."""
    facs, dsdt, facp = table(b"FACS", 64), table(b"DSDT", 300), bytearray(table(b"FACP", 244))
    facp[36:44] = struct.pack("<II", 0, 64)
    facp[140:148] = struct.pack("<Q", 64)
    blob, listed = facs + dsdt + bytes(facp), [len(facs + dsdt)]
    for number, name in enumerate(names):
        listed.append(len(blob))
        blob += table(name, 40 + 4 * number)
    rsdt = table(b"RSDT", 36) + b"".join(each.to_bytes(4, "little") for each in listed)
    rsdt = rsdt[:4] + len(rsdt).to_bytes(4, "little") + rsdt[8:]
    return (blob + rsdt).ljust(size, b"\0")
