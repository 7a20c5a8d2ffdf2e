"""What `dstack measure` measures: the folder of an image, or a measurement document alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dstack.cli.files import read_input
from dstack.cli.image_folder import ImageFolder, read_image
from dstack.cli.subjects import held_vm_config
from dstack.errors import InputError, MeasurementMalformedError
from dstack.measurement.document import (
    MeasurementDocument,
    accepted_document,
    document_digests,
    make_document,
    parse_measurement_document,
    serialise_measurement_document,
)
from dstack.measurement.machine import BootDigests, image_digests
from dstack.measurement.result import Comparison, Verdict
from dstack.measurement.result_json import MAX_RESULT
from dstack.measurement.vm_config import VmConfig, parse_vm_config
from dstack.values import OsImageHash


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """What was named to be measured: a folder, or a document alone.

    Attributes:
        folder: The image's files; exactly one of this and *document* is there.
        document: Measured by somebody else: its digests are taken.
        config: The VM config that carried the document.
    """

    folder: ImageFolder | None = None
    document: MeasurementDocument | None = None
    config: str | None = None

    @property
    def os_image_hash(self) -> OsImageHash | None:
        """Known of a folder."""
        return None if self.folder is None else self.folder.os_image_hash

    @property
    def version(self) -> str | None:
        """The release, as a folder's metadata.json says it."""
        return None if self.folder is None else self.folder.metadata.version

    def path(self, part: str) -> Path | None:
        """Where a part of a folder is."""
        return None if self.folder is None else self.folder.folder / getattr(self.folder.metadata, part)

    def digests(self, config: VmConfig) -> BootDigests:
        """Measure it for one shape; the files of a folder are compared with its sha256sum.txt.

        Raises:
            MeasurementMalformedError: A file is another, or not of its form, or the shape cannot be measured.
        """
        if self.document is not None:
            return document_digests(self.document, config)
        assert self.folder is not None
        # Both hash tens of megabytes, and hashing leaves the interpreter free: each gets a core.
        with ThreadPoolExecutor(1) as pool:
            checked = self.folder.check_beside(pool)
            try:
                return image_digests(self.folder.files, config)
            finally:
                # A wrong file is the better reason than whatever measuring it came to.
                checked.result()

    def hash(self, config: VmConfig) -> OsImageHash | None:
        """Its hash: that of the folder, or what the VM config claims.

        Raises:
            MeasurementMalformedError: The VM config is about another image.
        """
        claimed = config.os_image_hash if any(config.os_image_hash) else None
        known = self.os_image_hash
        if claimed is None or known is None or claimed == known:
            return known or claimed
        raise MeasurementMalformedError(
            f"os_image_hash: the VM config says {claimed.hex()}, this image is {known.hex()}"
        )

    def explained(self, comparison: Comparison, config: VmConfig) -> Comparison:
        """Say of an MRTD that differs whether it is the one of the other page order, the commonest mistake."""
        if comparison.name != "mrtd" or comparison.verdict is not Verdict.MISMATCHED:
            return comparison
        other = self.digests(replace(config, qemu_single_pass_add_pages=not config.two_pass))
        if other.mrtd != comparison.got:
            return comparison
        order = "one pass (QEMU 9 and later)" if config.two_pass else "two passes (QEMU 8)"
        return replace(comparison, note=f"it is this firmware, loaded in {order}: look at the host's QEMU version")

    def save_document(self, path: str) -> None:
        """Write the measurement document of a folder.

        Raises:
            InputError: It is no folder, or the file cannot be written.
            MeasurementMalformedError: No document can stand for its firmware.
        """
        if self.folder is None:
            raise InputError("--write-document: it is made from an image's folder")
        try:
            Path(path).write_bytes(serialise_measurement_document(make_document(self.folder.files)))
        except OSError as exc:
            raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def read_measured(image: str) -> MeasuredImage:
    """Read what was named: a folder, a document, or a VM config that carries one.

    Raises:
        InputError: It cannot be read, or is none of them.
        MeasurementMalformedError: A file of it is malformed.
    """
    if Path(image).is_dir():
        return MeasuredImage(folder=read_image(Path(image)))
    raw = read_input(image, limit=MAX_RESULT)
    if not raw.lstrip().startswith(b"{"):
        return MeasuredImage(document=parse_measurement_document(raw))
    text = held_vm_config(raw, image)
    return MeasuredImage(document=accepted_document(parse_vm_config(text)), config=text)
