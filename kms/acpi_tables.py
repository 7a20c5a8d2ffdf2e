"""The ACPI tables of the machines that ask, from the source that is configured.

A host chooses the tables of its guest, and code in them runs in the guest's kernel. Only the machine's own log names
their digests; a source of ours says what they must be, so that RTMR0 shows any others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from dstack.errors import ImageUnavailableError, InputError, ToolUnavailableError
from dstack.measurement.acpi import AcpiDigests
from dstack.measurement.acpi_store import AcpiShape
from dstack.measurement.image import METADATA_NAME, parse_image_metadata
from dstack.measurement.machine import BootDigests
from dstack.measurement.vm_config import VmConfig
from dstack.values import OsImageHash
from dstack.vmm.acpi_sources import captured_digests, helper_digests
from dstack.vmm.qtest import DEFAULT_QEMU, own_qemu_digests
from kms.image_cache import ImageCache, verify_image
from kms.turns import KeptInTurn

FROM_LOG = "from-log"

MeasureImage = Callable[[VmConfig], BootDigests]
GiveTables = Callable[[VmConfig], AcpiDigests]

_Shape = tuple[OsImageHash, AcpiShape]


def refuse_unseen_tables(_config: VmConfig) -> NoReturn:
    """What happens where no source is configured: of no machine is it known what its RTMR0 should be.

    Raises:
        ImageUnavailableError: Always.
    """
    raise ImageUnavailableError(
        "ACPI tables: only the machine's own log names their digests, and core.image.acpi_tables is unset"
    )


@dataclass(slots=True)
class AcpiTables:
    """Asks one source, about each shape of machine once, and about one at a time: callers choose the shapes.

    Whoever has a shape that is known waits for nobody, whatever others ask about.

    Attributes:
        source: `captured:PATH`, `helper:PROGRAM`, or `own-qemu` with perhaps `:PROGRAM`.
        images: Where a helper finds firmware and kernel.
    """

    source: str
    images: ImageCache
    _kept: KeptInTurn[_Shape, AcpiDigests] = field(
        default_factory=lambda: KeptInTurn("ACPI tables: shapes of machines")
    )

    def digests(self, config: VmConfig) -> AcpiDigests:
        """The digests of the tables that a machine of this shape must have.

        Raises:
            ImageUnavailableError: The source has none, or could not be asked.
            MeasurementMalformedError: The shape is one that QEMU has no stand-in for.
        """
        shape = (config.os_image_hash, AcpiShape.of(config))
        return self._kept.get(shape, lambda: self._ask(config))

    def _ask(self, config: VmConfig) -> AcpiDigests:
        kind, _, name = self.source.partition(":")
        try:
            if kind == "own-qemu":
                return own_qemu_digests(config, qemu=name or DEFAULT_QEMU)
            found = captured_digests(config, Path(name)) if kind == "captured" else self._helper(config, name)
        except ToolUnavailableError as exc:
            raise ImageUnavailableError(f"ACPI tables: {kind}: {exc}") from exc
        except InputError as exc:
            # A store or a helper of ours that gives something else says nothing about the machine.
            if kind == "own-qemu":
                raise
            raise ImageUnavailableError(f"ACPI tables: {kind}: {exc}") from exc
        if found is None:
            raise ImageUnavailableError(f"ACPI tables: {name} has none for this shape of machine")
        return found

    def _helper(self, config: VmConfig, program: str) -> AcpiDigests:
        folder = self.images.image(config.os_image_hash)
        verify_image(config.os_image_hash, folder)
        try:
            metadata = parse_image_metadata((folder / METADATA_NAME).read_bytes())
        except OSError as exc:
            raise ImageUnavailableError(f"{folder / METADATA_NAME}: cannot be read: {exc.strerror or exc}") from exc
        firmware, kernel = (str(folder / name) for name in (metadata.firmware, metadata.kernel))
        return helper_digests(config, program, firmware=firmware, kernel=kernel)
