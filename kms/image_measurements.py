"""OS images of machines that carry no measurement document ("legacy" mode): measured here, from their files.

What a machine claims to run is only a name. Its files are looked up by that name, and what they measure is compared
with the quote (kms.md 6.6). The ACPI tables are the host's: see `kms.acpi_tables`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from dstack.errors import ImageUnavailableError, MeasurementMalformedError
from dstack.measurement.image import MAX_METADATA, METADATA_NAME, parse_image_metadata, require_listed
from dstack.measurement.machine import BootDigests, ImageFiles, image_digests
from dstack.measurement.vm_config import VmConfig
from dstack.values import OsImageHash
from kms.image_cache import ImageCache, verify_image
from kms.turns import KeptInTurn

# What the digests depend on besides the image.
_Shape = tuple[OsImageHash, int, bool, bool, str | None]


@dataclass(slots=True)
class ImageMeasurements:
    """Measures images out of a cache, each shape of a machine once, and one at a time: callers choose the shapes."""

    cache: ImageCache
    _kept: KeptInTurn[_Shape, BootDigests] = field(default_factory=lambda: KeptInTurn("OS images: measurements"))

    def digests(self, config: VmConfig) -> BootDigests:
        """What the image that *config* names contributes to the registers of such a machine.

        Raises:
            ImageUnavailableError: The image is not here and could not be had, or too many wait.
            MeasurementMalformedError: It is not what its name says, or its measurement is not known.
        """
        shape = (config.os_image_hash, config.memory_size, config.two_pass, bool(config.cpu_count), config.ovmf_variant)
        return self._kept.get(shape, lambda: self._measure(config))

    def _measure(self, config: VmConfig) -> BootDigests:
        folder = self.cache.image(config.os_image_hash)
        # The list is compared again: who can write to the cache must not choose what is believed.
        listed = verify_image(config.os_image_hash, folder)

        def read(name: str, limit: int) -> bytes:
            if name not in listed:
                raise MeasurementMalformedError(f"OS image {config.os_image_hash.hex()}: its list lacks {name}")
            raw = _read(folder / name, limit)
            # It may have been replaced since `verify_image` read it.
            require_listed(name, sha256(raw).digest(), listed)
            return raw

        metadata = parse_image_metadata(read(METADATA_NAME, MAX_METADATA))
        return image_digests(ImageFiles.named(metadata, read), config)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit + 1)
    except OSError as exc:
        raise ImageUnavailableError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(raw) > limit:
        raise MeasurementMalformedError(f"{path.name}: want at most {limit} bytes, got more")
    return raw
