"""ACPI digests from where an auditor says: this computer's QEMU, a store of captured tables, or a program.

The fourth source, the machine's own log, needs no file of the auditor's: see `dstack.measurement.acpi`.
"""

from __future__ import annotations

import os
from pathlib import Path

from dstack.errors import InputError
from dstack.measurement.acpi import MAX_TABLES_BLOB, AcpiBlobs, AcpiDigests, AcpiSource, derive_acpi_blobs
from dstack.measurement.acpi_store import (
    INDEX_NAME,
    MAX_INDEX,
    AcpiShape,
    StoredTables,
    parse_store_index,
    serialise_store_index,
)
from dstack.measurement.vm_config import VmConfig
from dstack.vmm.programs import bounded_output
from dstack.vmm.qemu import helper_arguments, helper_environment

HELPER_SECONDS = 60.0


def captured_digests(config: VmConfig, path: Path) -> AcpiDigests | None:
    """Look the machine's shape up in a store, or take a single blob; None if the store has no tables for it.

    Args:
        config: The machine's shape.
        path: A folder with an index, or a file: whoever names one says that it is of this shape.

    Raises:
        InputError: It cannot be read.
        MeasurementMalformedError: The index or the blob is malformed.
    """
    if path.is_file():
        return _captured(path, "")
    entry = parse_store_index(_read(path / INDEX_NAME, MAX_INDEX)).get(AcpiShape.of(config))
    return None if entry is None else _captured(path / entry.tables, entry.note)


def capture(config: VmConfig, blobs: AcpiBlobs, folder: Path, *, note: str) -> Path:
    """Add the tables of one shape to a store, and give the file they went to.

    Raises:
        InputError: The store has other tables for this shape, or cannot be written.
    """
    shape, index = AcpiShape.of(config), folder / INDEX_NAME
    entries = dict(parse_store_index(_read(index, MAX_INDEX))) if index.exists() else {}
    if shape in entries:
        raise InputError(f"{index}: it has tables for this shape already: {entries[shape].tables}")
    name = f"{blobs.digests['acpi-tables'].hex()[:16]}-{len(entries)}.acpi-tables"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(blobs.tables)
        index.write_bytes(serialise_store_index({**entries, shape: StoredTables(name, note)}))
    except OSError as exc:
        raise InputError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    return folder / name


def _captured(path: Path, note: str) -> AcpiDigests:
    blobs = derive_acpi_blobs(_read(path, MAX_TABLES_BLOB))
    return AcpiDigests(blobs.digests, AcpiSource.CAPTURED, f"{path}" + (f" ({note[:200]})" if note else ""), blobs)


def helper_digests(
    config: VmConfig, program: str, *, firmware: str, kernel: str, seconds: float = HELPER_SECONDS
) -> AcpiDigests:
    """Have a program print the tables, called as dstack's own is; never through a shell.

    Args:
        config: The machine's shape.
        program: Path, or a name to look for.
        firmware: Path of the image's firmware.
        kernel: Path of its kernel.
        seconds: How long it may run.

    Raises:
        MeasurementMalformedError: What it printed are no tables.
        ToolUnavailableError: It cannot be started, failed, or ran too long.
    """
    argv = [program, *helper_arguments(config, firmware=firmware, kernel=kernel)]
    environment = {"PATH": os.environ.get("PATH", os.defpath), **helper_environment(config)}
    printed = bounded_output(argv, limit=MAX_TABLES_BLOB, seconds=seconds, environment=environment)
    blobs = derive_acpi_blobs(printed)
    return AcpiDigests(blobs.digests, AcpiSource.HELPER, program, blobs)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(content) > limit:
        raise InputError(f"{path}: want at most {limit} bytes, got more")
    return content
