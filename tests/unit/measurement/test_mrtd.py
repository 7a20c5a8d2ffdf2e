"""MRTD: the register that the firmware's bytes give, in both orders of QEMU, and firmware that is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.mrtd import mrtd
from dstack.measurement.td_hob import td_hob
from dstack.measurement.tdvf import MAX_FIRMWARE, MAX_SECTIONS, SectionType, parse_firmware
from tests.image_parts import CODE, HOB, METADATA, PAGE, PARTS, TEMPORARY, VARIABLES, Part, firmware, slow_mrtd

Load = Callable[[str], Any]
OVMF = Path("/usr/share/ovmf/OVMF.fd")
SPLIT = Path("/usr/share/OVMF/OVMF_CODE.fd")


@pytest.mark.parametrize("two_pass", [False, True])
def test_the_golden_firmware_has_its_mrtd(golden: Load, project_root: Path, two_pass: bool) -> None:
    """Both orders, and the TD HOBs that follow from the same sections."""
    for case in golden("synthetic_image.json")["tdvf"]:
        parsed = parse_firmware((project_root / "tests/vectors/measurement" / case["file"]).read_bytes())

        hobs = {size: sha384(td_hob(parsed.witness, int(size))).hexdigest() for size in case["td_hob_sha384"]}

        assert mrtd(parsed, two_pass=two_pass).hex() == case["mrtd_two_pass" if two_pass else "mrtd_single_pass"]
        assert hobs == case["td_hob_sha384"]


def test_debians_firmware_has_its_mrtd(golden: Load) -> None:
    """The installed OVMF is one that another program measured: sections, both orders, variable store, TD HOBs."""
    if not OVMF.exists():
        pytest.skip("package ovmf is not installed")
    raw = OVMF.read_bytes()
    known = {case["sha256"]: case for case in golden("debian_ovmf.json")}
    if sha256(raw).hexdigest() not in known:
        pytest.skip("the installed ovmf is of another version than the golden data")
    case = known[sha256(raw).hexdigest()]

    parsed = parse_firmware(raw)

    names = ("data_offset", "raw_size", "gpa", "mem_size", "type", "attributes")
    assert [{name: getattr(section, name) for name in names} for section in parsed.sections] == case["sections"]
    assert mrtd(parsed, two_pass=False).hex() == case["mrtd_single_pass"]
    assert mrtd(parsed, two_pass=True).hex() == case["mrtd_two_pass"]
    assert sha384(parsed.cfv).hexdigest() == case["cfv_sha384"]
    hobs = {size: sha384(td_hob(parsed.witness, int(size))).hexdigest() for size in case["td_hob_sha384"]}
    assert hobs == case["td_hob_sha384"]


def test_debians_split_firmware_is_refused() -> None:
    """The code half carries the metadata of the whole; measuring it would give a wrong register silently."""
    if not SPLIT.exists():
        pytest.skip("package ovmf is not installed")

    with pytest.raises(MeasurementMalformedError, match="want its data within 1966080 bytes"):
        parse_firmware(SPLIT.read_bytes())


@pytest.mark.parametrize("two_pass", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        PARTS,
        (replace(CODE, attributes=3), VARIABLES, HOB),
        (replace(CODE, attributes=2), VARIABLES, HOB),
        (replace(VARIABLES, attributes=1), CODE, HOB),
        (*PARTS, Part(0, 100, 0x90_0000, PAGE, 5)),
        (*PARTS, Part(0, 0, HOB.gpa, 0, 4)),
    ],
)
def test_mrtd_is_that_of_the_records_one_by_one(parts: tuple[Part, ...], two_pass: bool) -> None:
    """Pages that are only added, only extended, both or neither, in the order of the metadata."""
    raw = firmware(parts)

    assert mrtd(parse_firmware(raw), two_pass=two_pass) == slow_mrtd(raw, parts, two_pass=two_pass)


def test_every_measured_byte_counts_and_no_other() -> None:
    """A bit of the code changes MRTD; a bit of the variable store does not."""
    raw = firmware()
    wanted = mrtd(parse_firmware(raw), two_pass=False)

    for at in (2 * PAGE, 3 * PAGE + 255, 6 * PAGE - 1):
        assert mrtd(parse_firmware(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]), two_pass=False) != wanted
    for at in (0, 2 * PAGE - 1):
        assert mrtd(parse_firmware(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]), two_pass=False) == wanted


def test_cfv_and_witness_follow_from_the_sections() -> None:
    """The variable store is its section's bytes; the witness has TD HOB and temporary memory, sorted."""
    raw = firmware()

    parsed = parse_firmware(raw)

    assert parsed.cfv == raw[: 2 * PAGE]
    assert parsed.witness.hob_start == HOB.gpa
    assert [(part.start, part.length) for part in parsed.witness.accepted] == [
        (TEMPORARY.gpa, TEMPORARY.mem),
        (HOB.gpa, HOB.mem),
    ]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((replace(CODE, gpa=CODE.gpa + 1), VARIABLES, HOB), "section 0: want whole pages"),
        ((replace(CODE, mem=CODE.mem + 8), VARIABLES, HOB), "section 0: want whole pages"),
        ((CODE, VARIABLES, replace(HOB, gpa=2**52)), "section 2: want whole pages within 52 bits"),
        ((CODE, VARIABLES, replace(HOB, mem=2**64 - PAGE)), "section 2: want whole pages within 52 bits"),
        ((replace(CODE, mem=PAGE), VARIABLES, HOB), "section 0: 16384 bytes do not fit 4096"),
        ((replace(CODE, mem=5 * PAGE), VARIABLES, HOB), "measured, so want 20480 bytes of data, got 16384"),
        ((replace(CODE, offset=2 * PAGE + 1), VARIABLES, HOB), "section 0: want its data within 24576 bytes"),
        ((replace(CODE, offset=2**32 - 1), VARIABLES, HOB), "section 0: want its data within 24576 bytes"),
        ((CODE, VARIABLES, HOB, replace(HOB, gpa=0)), "want one TD_HOB section, got 2"),
        ((CODE, VARIABLES, HOB, replace(TEMPORARY, gpa=HOB.gpa + PAGE)), "sections overlap in memory"),
        ((CODE, VARIABLES, replace(HOB, kind=9)), "section 2: unknown type 9"),
        ((CODE, VARIABLES, replace(HOB, attributes=4)), "section 2: unknown attributes 0x4"),
        ((CODE, VARIABLES, HOB, replace(TEMPORARY, gpa=2**40, mem=2**40)), "want at most 65536 measured pages"),
        ((replace(CODE, raw=PAGE, mem=PAGE), VARIABLES, HOB), "want the whole flash image of 12288 bytes"),
    ],
)
def test_sections_that_contradict_are_refused(parts: tuple[Part, ...], message: str) -> None:
    """The image, the page size or each other."""
    with pytest.raises(MeasurementMalformedError, match=f"firmware: .*{message}"):
        parse_firmware(firmware(parts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"footer": bytes(16)}, "no table of GUIDs at its end"),
        ({"entry": b"\0" * 4 + b"\x16\0" + bytes(16)}, "no TDX metadata in its table of GUIDs"),
        ({"entry": b"\0" * 4 + b"\x11\0" + METADATA}, "an entry of 17 bytes does not fit"),
        ({"entry": b"\0" * 4 + b"\xff\xff" + METADATA}, "an entry of 65535 bytes does not fit"),
        ({"entry": b"\x12\0" + METADATA}, "TDX metadata entry: want 4 bytes, got 0"),
        ({"table": 17}, "want a length of 18 to"),
        ({"table": 0xFFFF}, "want a length of 18 to"),
        ({"table": 18 + 17}, "too short for a table of GUIDs"),
        ({"offset": 0xFFFF_FFFF}, "TDX metadata lies outside of it"),
        ({"offset": 8}, "TDX metadata lies outside of it"),
        ({"signature": b"TDVX"}, "want the signature TDVF, got 54445658"),
        ({"version": 2}, "want version 1, got 2"),
        ({"count": 0}, f"want 1 to {MAX_SECTIONS} sections, got 0"),
        ({"count": 2**32 - 1}, f"want 1 to {MAX_SECTIONS} sections"),
        ({"count": 40, "length": 16 + 32 * 40}, "want 1296 bytes for 40 sections"),
        ({"length": 15}, "want 144 bytes for 4 sections, got 15"),
    ],
)
def test_metadata_of_another_form_is_refused(change: dict[str, Any], message: str) -> None:
    """No table, no entry, or a descriptor that leaves the image."""
    with pytest.raises(MeasurementMalformedError, match=message):
        parse_firmware(firmware(**change))


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(49), bytes(4096), bytes(MAX_FIRMWARE + 1)], ids=range(5))
def test_anything_else_is_refused(raw: bytes) -> None:
    """Too short, empty or too large."""
    with pytest.raises(MeasurementMalformedError, match="firmware: "):
        parse_firmware(raw)


def test_sections_that_are_needed_and_missing_are_named() -> None:
    """MRTD needs neither, RTMR0 needs both."""
    parsed = parse_firmware(firmware((CODE, TEMPORARY)))

    assert [section.type for section in parsed.sections] == [SectionType.BFV, SectionType.TEMP_MEM]
    with pytest.raises(MeasurementMalformedError, match="want one CFV section, got 0"):
        _ = parsed.cfv
    with pytest.raises(MeasurementMalformedError, match="want one TD_HOB section, got 0"):
        _ = parsed.witness
