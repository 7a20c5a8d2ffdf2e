"""Collateral on disk: every version that was ever kept, by platform model and day of arrival.

    <folder>/<tee>-<ca>-<fmspc>/<arrival, 20270115T080000Z>-<16 digits of its SHA-256>.json

Whoever can write there can withhold collateral or keep it old within its signed dates; it is signed, so nothing can be
forged.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from dstack.attestation.collateral import Collateral, serialise_collateral
from dstack.errors import CollateralMalformedError, CollateralUnavailableError
from dstack.transport.collateral import PlatformModel, flat_files, read_collateral
from dstack.transport.private_file import replace_private

MOST_VERSIONS = 512
MOST_MODELS = 1024
# Numbers only grow from version to version, so that the newest of them say how far they have come.
NEWEST = 32
_MODE = 0o644
_ARRIVAL = "%Y%m%dT%H%M%SZ"
_VERSION = re.compile(r"(\d{8}T\d{6}Z)-([0-9a-f]{16})\.json")
_MODEL = re.compile(r"(tdx|sgx)-(platform|processor)-([0-9a-f]{12})")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """Collateral as it lies on disk, and when it arrived: None where a person put it there."""

    path: Path
    arrived_at: datetime | None
    collateral: Collateral


@dataclass(frozen=True, slots=True)
class CollateralArchive:
    """One folder of collateral."""

    folder: Path

    def models(self) -> tuple[PlatformModel, ...]:
        """What there is something about.

        Raises:
            CollateralUnavailableError: The folder cannot be read.
        """
        names = sorted(path.name for path in self._listed(self.folder))
        matches = filter(None, map(_MODEL.fullmatch, names))
        found = (PlatformModel(match[1], match[2], bytes.fromhex(match[3])) for match in matches)  # type: ignore[arg-type]
        return tuple(islice(found, MOST_MODELS))

    def newest(self, model: PlatformModel) -> list[Version]:
        """The newest versions about *model*, the newest first, then what a person put beside them.

        What cannot be read is skipped, and said in the log: it must not hide what can.

        Raises:
            CollateralUnavailableError: The folder cannot be read.
        """
        paths = [*reversed(self._versions(model)[-NEWEST:]), *flat_files(self.folder, model.fmspc.hex())]
        return [version for path in paths if (version := _read(path)) is not None]

    def keep(self, model: PlatformModel, collateral: Collateral, *, at: datetime) -> Path:
        """Write *collateral* as the newest version about *model*, unless it is there already.

        Raises:
            CollateralUnavailableError: It could not be written.
        """
        content = serialise_collateral(collateral).encode()
        digest = hashlib.sha256(content).hexdigest()[:16]
        versions = self._versions(model)
        present = next((path for path in versions if path.name.endswith(f"-{digest}.json")), None)
        if present is not None:
            return present
        path = self.folder / str(model) / f"{at.astimezone(UTC):{_ARRIVAL}}-{digest}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_private(path, content)
            path.chmod(_MODE)
            for old in versions[: max(0, len(versions) + 1 - MOST_VERSIONS)]:
                old.unlink(missing_ok=True)
        except OSError as exc:
            raise CollateralUnavailableError(f"collateral: {path}: cannot be kept: {exc.strerror or exc}") from exc
        return path

    def _versions(self, model: PlatformModel) -> list[Path]:
        """Oldest first."""
        return sorted(path for path in self._listed(self.folder / str(model)) if _VERSION.fullmatch(path.name))

    def _listed(self, folder: Path) -> list[Path]:
        try:
            return list(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise CollateralUnavailableError(f"collateral: {folder}: {exc.strerror or exc}") from exc


def _read(path: Path) -> Version | None:
    match = _VERSION.fullmatch(path.name)
    try:
        arrived_at = datetime.strptime(match[1], _ARRIVAL).replace(tzinfo=UTC) if match else None
        collateral = read_collateral(path)
    except (ValueError, CollateralMalformedError, CollateralUnavailableError) as exc:
        _log.warning("collateral: %s is skipped: %s", path, exc)
        return None
    return None if collateral is None else Version(path, arrived_at, collateral)
