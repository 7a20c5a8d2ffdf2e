"""The kernel as firmware measures it: QEMU's patch by protocol and memory, Authenticode, and files that are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

import pefile
import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.authenticode import MAX_PE, MAX_PE_SECTIONS, authenticode, authenticode_sha384, parse_pe
from dstack.measurement.kernel import initrd_address, kernel_digest, patched_kernel
from dstack.measurement.linux_boot import rtmr1_events
from dstack.measurement.prediction import register_of
from tests.image_parts import Pe, slow_authenticode

Load = Callable[[str], Any]
GIB = 2**30
SMALL = 0x10_0000


def test_the_golden_kernel_has_its_digests(golden: Load, project_root: Path) -> None:
    """Unpatched, and patched for six sizes of memory; RTMR1 follows."""
    for case in golden("synthetic_image.json")["kernel"]:
        kernel = (project_root / "tests/vectors/measurement" / case["file"]).read_bytes()
        assert authenticode_sha384(kernel).hex() == case["unpatched_sha384"]
        for memory, expected in case["by_memory"].items():
            shape = {"initrd_size": case["initrd_size"], "memory_size": int(memory)}

            digest = kernel_digest(kernel, **shape)

            assert initrd_address(kernel, **shape) == expected["initrd_addr"]
            assert digest.hex() == expected["authenticode_sha384"]
            assert register_of(1, rtmr1_events(digest)).hex() == expected["rtmr1"]


def test_debians_signed_kernel_has_its_digest(golden: Load) -> None:
    """The digest of a kernel with a certificate table; the SHA-256 of the same bytes is in Debian's signature."""
    case = golden("debian_kernel.json")[0]
    found = [
        path for path in Path("/boot").glob("vmlinuz-*") if sha256(path.read_bytes()).hexdigest() == case["sha256"]
    ]
    if not found:
        pytest.skip(f"package {case['source']['package']} {case['source']['version']} is not installed")
    kernel = found[0].read_bytes()

    assert authenticode_sha384(kernel).hex() == case["authenticode_sha384"]
    for memory, expected in case["patched_sha384_initrd_30000000"].items():
        assert kernel_digest(kernel, initrd_size=30_000_000, memory_size=int(memory)).hex() == expected


@pytest.mark.parametrize(
    "pe",
    [
        Pe(),
        Pe(magic=0x10B),
        Pe(sections=((0x2000, 0x1000), (0x600, 0x1A00))),
        Pe(sections=((0x600, 0x1A00), (0, 0), (0x2000, 0x1000))),
        Pe(size=0x3003, sections=((0x600, 0x1A00), (0x2000, 0x1003))),
        Pe(sections=((0x600, 0x1A00), (0x2000, 0x2000))),
        Pe(security=(0x2000, 0x1000), sections=((0x600, 0x1A00),)),
        Pe(size=0x600, sections=()),
    ],
)
def test_the_digest_is_that_of_the_parts(pe: Pe) -> None:
    """Sections by rising place, those without content left out, cut at the end, padded, without certificates."""
    raw = pe.build()

    assert authenticode_sha384(raw) == slow_authenticode(raw, pe)


def test_bytes_between_sections_and_certificates_are_hashed() -> None:
    """Only where a certificate table is: without one they are refused."""
    pe = Pe(sections=((0x600, 0x1A00),), security=(0x2800, 0x800))
    raw = pe.build()

    hashed_as_section = pe.but(sections=((0x600, 0x1A00), (0x2000, 0x800)))
    assert authenticode_sha384(raw) == slow_authenticode(raw, hashed_as_section)
    with pytest.raises(MeasurementMalformedError, match="4096 bytes behind the last section, and no certificate table"):
        authenticode_sha384(pe.but(security=(0, 0)).build())


def test_after_a_gap_as_many_bytes_are_hashed_again() -> None:
    """Where a certificate table is, firmware goes on at the number of bytes it has hashed, not where a section ends."""
    pe = Pe(sections=((0x800, 0x1800),), security=(0x2800, 0x800))
    raw = pe.build()

    # 0x600 of headers and 0x1800 of the section are hashed; all but these and the certificates is left.
    wanted = pe.but(sections=((0x800, 0x1800), (0x1E00, 0x3000 - 0x1E00 - 0x800)))

    assert authenticode_sha384(raw) == slow_authenticode(raw, wanted)


def test_signatures_hold_another_digest_of_the_same_bytes() -> None:
    """SHA-256 in Debian's."""
    raw = Pe().build()
    pe = Pe()
    hashed = raw[: pe.optional + 64] + raw[pe.optional + 68 : pe.entry] + raw[pe.entry + 8 :]

    assert authenticode(raw, "sha256") == sha256(hashed).digest()


def test_without_a_directory_entry_headers_are_hashed_whole() -> None:
    """An optional header with four directories has no place for certificates."""
    pe = Pe(directories=4)
    raw = pe.build()

    wanted = sha384(raw[: pe.optional + 64] + raw[pe.optional + 68 :]).digest()

    assert authenticode_sha384(raw) == wanted


def test_checksum_and_signature_do_not_count() -> None:
    """Everything else does."""
    pe = Pe(sections=((0x600, 0x1A00),), security=(0x2000, 0x1000))
    raw = bytearray(pe.build())
    wanted = authenticode_sha384(raw)

    for at, counts in ((pe.optional + 64, False), (0x2FFF, False), (0x1FFF, True), (3, True)):
        changed = bytearray(raw)
        changed[at] ^= 1
        assert (authenticode_sha384(changed) != wanted) == counts


def test_the_layout_is_the_one_that_pefile_finds() -> None:
    """Another reader of PE files sees the same places."""
    raw = Pe(security=(0x2000, 0x1000), sections=((0x600, 0x1A00),)).build()
    other = pefile.PE(data=raw, fast_load=True)

    layout = parse_pe(raw)

    security = other.OPTIONAL_HEADER.DATA_DIRECTORY[4]
    assert layout.headers_size == other.OPTIONAL_HEADER.SizeOfHeaders
    assert layout.certificates == (security.VirtualAddress, security.VirtualAddress + security.Size)
    assert layout.security == security.get_file_offset()
    assert layout.checksum == other.OPTIONAL_HEADER.get_field_absolute_offset("CheckSum")
    found = [(each.PointerToRawData, each.PointerToRawData + each.SizeOfRawData) for each in other.sections]
    assert list(layout.sections) == found


@pytest.mark.parametrize(
    ("pe", "message"),
    [
        (Pe(signature=b"PX\0\0"), "want the signature PE"),
        (Pe(magic=0x107), "want the magic 0x10b or 0x20b, got 0x107"),
        (Pe(headers=0x10), "size of headers: want"),
        (Pe(headers=0x4000), "size of headers: want"),
        (Pe(sections=((0x500, 0x2B00),)), "sections overlap each other or the headers"),
        (Pe(sections=((0x600, 0x2000), (0x2000, 0x1000))), "sections overlap each other or the headers"),
        (Pe(sections=((0x600, 0x2A00), (0x3000, 0x10))), "a section starts at 12288, behind the end at 12288"),
        (Pe(sections=((0x600, 0x1A00),), security=(0x1000, 0x2000)), "certificate table: want it within 8192 to 12288"),
        (Pe(sections=((0x600, 0x1A00),), security=(0x2000, 0x1001)), "certificate table: want it within 8192 to 12288"),
        (Pe(optional_size=8), "optional header: want at least 112 bytes, got 8"),
        (Pe(optional_size=120), "16 directories do not fit it"),
        (
            Pe(sections=((0x2000, 1),) * (MAX_PE_SECTIONS + 1), headers=0x2000),
            f"want at most {MAX_PE_SECTIONS} sections",
        ),
        (Pe(pe_at=0x2FF0), "the PE header at 12272 lies outside"),
    ],
)
def test_files_that_contradict_themselves_are_refused(pe: Pe, message: str) -> None:
    """Each bound by its name."""
    with pytest.raises(MeasurementMalformedError, match=f"PE file: .*{message}"):
        authenticode_sha384(pe.build()[: pe.size])


@pytest.mark.parametrize(
    "raw", [b"", b"MZ", bytes(4096), b"MZ" + bytes(58) + b"\xff\xff\xff\xff" + bytes(100)], ids=range(4)
)
def test_anything_else_is_refused(raw: bytes) -> None:
    """No PE file."""
    with pytest.raises(MeasurementMalformedError, match="PE file: "):
        authenticode_sha384(raw)


def test_qemu_writes_these_fields_and_no_other() -> None:
    """Loader, heap, command line and initrd, as for a kernel that is loaded high."""
    kernel = Pe().build()

    patched = patched_kernel(kernel, initrd_size=SMALL, memory_size=2 * GIB)

    assert patched[0x210] == 0xB0
    assert patched[0x211] == kernel[0x211] | 0x80
    assert int.from_bytes(patched[0x224:0x228], "little") == 0x20000 - 0x10000 - 0x200
    assert int.from_bytes(patched[0x228:0x22C], "little") == 0x20000
    assert int.from_bytes(patched[0x21C:0x220], "little") == SMALL
    changed = [at for at in range(len(kernel)) if kernel[at] != patched[at]]
    assert {at for at in changed if not 0x210 <= at < 0x22C} == set()


@pytest.mark.parametrize(
    ("pe", "fields"),
    [
        (Pe(load_flags=0), {0x228: 0x9A000, 0x224: 0x9A000 - 0x90000 - 0x200}),
        (
            Pe(protocol=0x201, load_flags=0),
            {0x224: 0x9A000 - 0x90000 - 0x200, 0x20: 0xA33F | (0x9A000 - 0x90000) << 16},
        ),
        (Pe(protocol=0x201), {0x224: 0x20000 - 0x10000 - 0x200, 0x20: 0xA33F}),
        (Pe(protocol=0x200), {0x20: 0xA33F}),
        (Pe(protocol=0x1FF, mark=b"code"), {0x20: 0xA33F | (0x9A000 - 0x90000) << 16}),
    ],
)
def test_older_protocols_are_patched_elsewhere(pe: Pe, fields: dict[int, int]) -> None:
    """Loaded low; without a command line pointer; without a setup header at all."""
    patched = patched_kernel(pe.build(), initrd_size=0, memory_size=2 * GIB)

    assert {at: int.from_bytes(patched[at : at + 4], "little") for at in fields} == fields


@pytest.mark.parametrize(
    ("pe", "memory", "limit"),
    [
        (Pe(), GIB, GIB - 0x28000 - 1),
        (Pe(), 2 * GIB, 2 * GIB - 0x28000 - 1),
        (Pe(), 0xB000_0000 - 4096, 0xB000_0000 - 4096 - 0x28000 - 1),
        (Pe(), 0xB000_0000, 2 * GIB - 0x28000 - 1),
        (Pe(), 64 * GIB, 2 * GIB - 0x28000 - 1),
        (Pe(above_4g=False), 2 * GIB, 0x37FF_FFFF),
        (Pe(protocol=0x20B), 2 * GIB, 0x7FFF_FFFF - 0x28000),
        (Pe(protocol=0x20B, initrd_max=0x1000_0000), 2 * GIB, 0x1000_0000),
        (Pe(protocol=0x203, initrd_max=0), 2 * GIB, 0x37FF_FFFF),
        (Pe(protocol=0x200), 2 * GIB, 0x37FF_FFFF),
    ],
)
def test_the_initrd_lies_as_high_as_it_may(pe: Pe, memory: int, limit: int) -> None:
    """Below what kernel and memory allow, on a page; and one byte too many is refused."""
    kernel = pe.build()

    assert initrd_address(kernel, initrd_size=SMALL, memory_size=memory) == (limit - SMALL) & ~0xFFF
    assert initrd_address(kernel, initrd_size=limit - 1, memory_size=memory) == 0
    with pytest.raises(MeasurementMalformedError, match=f"initrd: want 1 to {limit - 1} bytes"):
        initrd_address(kernel, initrd_size=limit, memory_size=memory)


def test_one_byte_more_of_initrd_is_another_kernel() -> None:
    """Its size is in the setup header, so RTMR1 changes with it; above 2816 MiB memory does not matter."""
    kernel = Pe().build()

    one = kernel_digest(kernel, initrd_size=SMALL, memory_size=4 * GIB)

    assert one != kernel_digest(kernel, initrd_size=SMALL + 1, memory_size=4 * GIB)
    assert one == kernel_digest(kernel, initrd_size=SMALL, memory_size=64 * GIB)
    assert one == kernel_digest(kernel, initrd_size=SMALL, memory_size=2 * GIB)
    assert one != kernel_digest(kernel, initrd_size=SMALL, memory_size=2 * GIB - 4096)


@pytest.mark.parametrize(
    ("kernel", "memory", "message"),
    [
        (Pe().build()[:0xFFF], 2 * GIB, "kernel: want 4096 to .* bytes, got 4095"),
        (
            Pe(protocol=0x1FF, mark=b"code").build(),
            2 * GIB,
            "want boot protocol 2.00 or later for an initrd, got 0x1ff",
        ),
        (Pe(mark=b"code").build(), 2 * GIB, "want the mark HdrS of boot protocol 0x20f, got 636f6465"),
        (Pe().build(), 0x27FFF, "memory size: want at least 163840 bytes, got 163839"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_kernels_that_qemu_could_not_start_are_refused(kernel: bytes, memory: int, message: str) -> None:
    """Cut short, too old, without its mark, or without memory."""
    with pytest.raises(MeasurementMalformedError, match=message):
        kernel_digest(kernel, initrd_size=SMALL, memory_size=memory)


def test_the_largest_kernel_is_measured_in_bounded_memory(tmp_path: Path) -> None:
    """One byte more is refused, before anything is copied; the largest that is taken needs less than 256 MiB in all."""
    path = tmp_path / "bzImage"
    path.write_bytes(Pe(sections=((0x600, MAX_PE - 0x600),)).build())
    os.truncate(path, MAX_PE)
    program = (
        "from pathlib import Path\n"
        "from dstack.measurement.kernel import kernel_digest\n"
        f"kernel = Path({str(path)!r}).read_bytes()\n"
        "print(kernel_digest(kernel, initrd_size=1, memory_size=2 << 30).hex())\n"
        # `getrusage` would count what this process had before it became that one.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    digest, kibibytes = ran.stdout.split()
    assert len(digest) == 96
    assert int(kibibytes) < 256 * 1024
    with pytest.raises(MeasurementMalformedError, match=f"kernel: want 4096 to {MAX_PE} bytes, got {MAX_PE + 1}"):
        kernel_digest(bytes(MAX_PE + 1), initrd_size=0, memory_size=2 << 30)
