"""`--acpi SOURCE`: where the digests of a machine's ACPI tables come from."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import click

from dstack.cli.subjects import read_subject
from dstack.errors import InputError
from dstack.measurement.acpi import AcpiDigests, AcpiSource, acpi_digests
from dstack.measurement.vm_config import VmConfig

HELP = "own-qemu[:PROGRAM], captured:PATH, helper:PROGRAM or from-log:FILE."


def acpi_from(source: str, config: VmConfig, *, firmware: Path | None, kernel: Path | None) -> AcpiDigests | None:
    """Get the digests from the source that was named; None if a store has none for this shape.

    Args:
        source: See `HELP`.
        config: The machine's shape.
        firmware: The image's file; only a helper needs it.
        kernel: The image's file; only a helper needs it.

    Raises:
        InputError: Another source, or one that needs a name or files that are not there.
        UnavailableError: The program did not answer.
    """
    kind, _, name = source.partition(":")
    if kind not in list(AcpiSource):
        raise InputError(f"--acpi: want {HELP[:-1]}, got {source[:80]!r}")
    if kind != AcpiSource.OWN_QEMU and not name:
        raise InputError(f"--acpi: want {kind}: and a name behind it")
    if kind == AcpiSource.FROM_LOG:
        return _from_log(name)
    # Programs and stores are only needed by those who name one.
    from dstack.vmm import acpi_sources, qtest

    if kind == AcpiSource.CAPTURED:
        return acpi_sources.captured_digests(config, Path(name))
    if kind == AcpiSource.HELPER:
        if firmware is None or kernel is None:
            raise InputError("--acpi helper: it needs the image's folder, and a measurement document was given")
        click.echo(f"asking {name} for the ACPI tables ...", err=True)
        return acpi_sources.helper_digests(config, name, firmware=str(firmware), kernel=str(kernel))
    digests = qtest.own_qemu_digests(config, qemu=name or qtest.DEFAULT_QEMU)
    if config.qemu_version is not None and f" {config.qemu_version} " not in f"{digests.detail} ":
        click.echo(
            f"warning: the VM runs QEMU {config.qemu_version}; the tables are those of {digests.detail}", err=True
        )
    return digests


def keep(acpi: AcpiDigests | None, config: VmConfig, folder: str) -> None:
    """Add the tables to a store, so that `captured` finds them for this shape.

    Raises:
        InputError: There are no tables, or the store has others for this shape.
    """
    if acpi is None or acpi.blobs is None:
        raise InputError("--keep-acpi: want tables, from own-qemu, captured or helper")
    from dstack.vmm.acpi_sources import capture

    path = capture(config, acpi.blobs, Path(folder), note=f"{acpi.source.value}: {acpi.detail}")
    click.echo(f"kept the ACPI tables in {path}", err=True)


def _from_log(path: str) -> AcpiDigests:
    events = read_subject(path).events
    if events is None:
        raise InputError(f"{path}: it has no event log")
    return AcpiDigests(MappingProxyType(acpi_digests(events)), AcpiSource.FROM_LOG, path)
