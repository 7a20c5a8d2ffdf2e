"""An OS image on disk: its files, each compared with the image's sha256sum.txt."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from dstack.cli.files import read_input
from dstack.measurement.image import (
    CHECKSUM_FILE_NAME,
    MAX_CHECKSUM_FILE,
    MAX_METADATA,
    METADATA_NAME,
    ImageMetadata,
    os_image_hash,
    parse_checksum_file,
    parse_image_metadata,
    require_listed,
)
from dstack.measurement.machine import ImageFiles
from dstack.values import Digest32, OsImageHash


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The measured files of an image, in memory."""

    folder: Path
    os_image_hash: OsImageHash
    metadata: ImageMetadata
    files: ImageFiles
    listed: Mapping[str, Digest32]
    metadata_raw: bytes

    def check(self) -> None:
        """Compare every measured file with what sha256sum.txt lists.

        Raises:
            MeasurementMalformedError: One is not listed, or is another.
        """
        parts = {
            METADATA_NAME: self.metadata_raw,
            self.metadata.firmware: self.files.firmware,
            self.metadata.kernel: self.files.kernel,
            self.metadata.initrd: self.files.initrd,
        }
        for name, content in parts.items():
            require_listed(name, sha256(content).digest(), self.listed)

    def check_beside(self, pool: ThreadPoolExecutor) -> Future[None]:
        """Start `check` on another core: whoever measures meanwhile must ask for the answer before showing anything."""
        return pool.submit(self.check)


def read_image(folder: Path) -> ImageFolder:
    """Read an image's files; nothing is compared yet: see `ImageFolder.check`.

    Raises:
        InputError: A file is missing or too large.
        MeasurementMalformedError: metadata.json or sha256sum.txt is malformed.
    """
    checksums = read_input(str(folder / CHECKSUM_FILE_NAME), limit=MAX_CHECKSUM_FILE)
    metadata_raw = read_input(str(folder / METADATA_NAME), limit=MAX_METADATA)
    metadata = parse_image_metadata(metadata_raw)
    files = ImageFiles.named(metadata, lambda name, limit: read_input(str(folder / name), limit=limit))
    return ImageFolder(folder, os_image_hash(checksums), metadata, files, parse_checksum_file(checksums), metadata_raw)
