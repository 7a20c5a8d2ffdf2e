"""Which ACPI tables a peer's machine must have, from the source that the settings name.

A host chooses the tables of its guest, and code in them runs in the guest's kernel. Only the machine's own log names
their digests; captured ones say what they must be, so that RTMR0 shows any others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dstack.errors import ImageUnavailableError, InputError
from dstack.measurement.acpi import AcpiDigests
from dstack.measurement.vm_config import VmConfig
from dstack.vmm.acpi_sources import captured_digests

FROM_LOG = "from-log"
CAPTURED = "captured:"

GiveTables = Callable[[VmConfig], AcpiDigests]


def tables_from(source: str) -> GiveTables | None:
    """What gives the digests; None where the machine's own log does.

    Args:
        source: `captured:PATH`, `from-log`, or empty where the chain lists the exact registers.
    """
    return partial(_captured, Path(source.removeprefix(CAPTURED))) if source.startswith(CAPTURED) else None


def _captured(path: Path, config: VmConfig) -> AcpiDigests:
    """The digests of the tables that a machine of this shape must have.

    Raises:
        ImageUnavailableError: There are none, or what is there cannot be used: that says nothing about the machine.
    """
    try:
        found = captured_digests(config, path)
    except InputError as exc:
        raise ImageUnavailableError(f"ACPI tables: {exc}") from exc
    if found is None:
        raise ImageUnavailableError(f"ACPI tables: {path} has none for this shape of machine")
    return found
