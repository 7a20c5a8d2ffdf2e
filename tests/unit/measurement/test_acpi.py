"""ACPI blobs: pointer and loader follow from the tables, and blobs that hold together in no known way are refused."""

from __future__ import annotations

import struct
from hashlib import sha384

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.acpi import (
    LOADER_SIZE,
    MAX_TABLES,
    MAX_TABLES_BLOB,
    AcpiSource,
    checked_acpi_blobs,
    derive_acpi_blobs,
)
from tests.image_parts import acpi_tables


def commands(loader: bytes) -> list[tuple[int, ...]]:
    """Read the numbers of the loader's commands: allocations, pointers, checksums."""
    read = []
    for at in range(0, len(loader), 128):
        code = int.from_bytes(loader[at : at + 4], "little")
        place, form = {1: (60, "<IB"), 2: (116, "<IB"), 3: (60, "<III")}.get(code, (0, ""))
        if code:
            read.append((code, *struct.unpack_from(form, loader, at + place)))
    return read


def test_the_loader_is_the_one_that_qemu_makes() -> None:
    """Pointers of FACP and RSDT, a checksum for every table but FACS, the pointer to it all last."""
    tables = acpi_tables()
    # FACS 0, DSDT 64, FACP 364, APIC 608, MCFG 648, WAET 692, RSDT 740.
    blobs = derive_acpi_blobs(tables)

    assert commands(blobs.loader) == [
        (1, 16, 2),
        (1, 64, 1),
        (3, 73, 64, 300),
        (2, 400, 4),
        (2, 404, 4),
        (2, 504, 8),
        (3, 373, 364, 244),
        (3, 617, 608, 40),
        (3, 657, 648, 44),
        (3, 701, 692, 48),
        (2, 776, 4),
        (2, 780, 4),
        (2, 784, 4),
        (2, 788, 4),
        (3, 749, 740, 52),
        (2, 16, 4),
        (3, 8, 0, 20),
    ]
    assert len(blobs.loader) == LOADER_SIZE
    assert blobs.rsdp == b"RSD PTR \0BOCHS \0" + (740).to_bytes(4, "little")
    assert blobs.digests == {
        "acpi-loader": sha384(blobs.loader).digest(),
        "acpi-rsdp": sha384(blobs.rsdp).digest(),
        "acpi-tables": sha384(tables).digest(),
    }


def test_machines_with_numa_have_one_checksum_more() -> None:
    """SRAT stands where QEMU puts it, behind APIC."""
    loader = derive_acpi_blobs(acpi_tables((b"APIC", b"SRAT", b"MCFG", b"WAET"))).loader

    assert len(commands(loader)) == 19


def test_captured_blobs_must_belong_together() -> None:
    """The digests of a store are recomputed, and pointer and loader of another machine are noticed."""
    blobs = derive_acpi_blobs(acpi_tables())
    other = derive_acpi_blobs(acpi_tables((b"APIC", b"WAET")))

    assert checked_acpi_blobs(blobs.tables, blobs.rsdp, blobs.loader) == blobs
    with pytest.raises(MeasurementMalformedError, match="the RSDP of 20 bytes is not the one that follows"):
        checked_acpi_blobs(blobs.tables, other.rsdp, blobs.loader)
    with pytest.raises(MeasurementMalformedError, match="the loader of 4096 bytes is not the one that follows"):
        checked_acpi_blobs(blobs.tables, blobs.rsdp, other.loader)


def with_bytes(at: int, content: bytes) -> bytes:
    """Change the blob."""
    tables = acpi_tables()
    return tables[:at] + content + tables[at + len(content) :]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (b"", "no table in it"),
        (bytes(4096), "no table in it"),
        (bytes(MAX_TABLES_BLOB + 1), f"want at most {MAX_TABLES_BLOB} bytes"),
        (acpi_tables((b"APIC",) * MAX_TABLES), f"want at most {MAX_TABLES} tables"),
        (acpi_tables((b"APIC", b"TPM2")), "table b'TPM2': how QEMU links it is not known here"),
        (acpi_tables()[:780], "table b'RSDT' at 740: a length of 52 does not fit"),
        (with_bytes(4, (35).to_bytes(4, "little")), "table b'FACS' at 0: a length of 35 does not fit"),
        (with_bytes(4, (2**32 - 1).to_bytes(4, "little")), "table b'FACS' at 0: a length of 4294967295 does not fit"),
        (with_bytes(0, b"DSDT"), "want one table DSDT, got 2|want one table FACS, got 0"),
        (with_bytes(740, b"WAET"), "want one table RSDT, got 0"),
        (with_bytes(692, b"RSDT"), "want one table RSDT, got 2"),
        (with_bytes(364 + 40, b"\1"), r"want a pointer to DSDT \(64\) at 404, got 1"),
        (with_bytes(776, b"\0"), r"want a pointer to FACP \(364\) at 776, got 256"),
        (with_bytes(4095, b"\1"), "want zeros behind the last table, at 792"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_other_blobs_are_refused(tables: bytes, message: str) -> None:
    """Tables that do not fit, are unknown, or point elsewhere."""
    with pytest.raises(MeasurementMalformedError, match=f"ACPI tables: (?:{message})"):
        derive_acpi_blobs(tables)


def test_only_digests_from_the_log_are_unverified() -> None:
    """Every other source saw the tables themselves."""
    assert [source for source in AcpiSource if not source.verified] == [AcpiSource.FROM_LOG]
