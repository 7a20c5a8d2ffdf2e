"""OS images on this machine's disk: fetched when a guest runs one, believed because of the list that its hash names.

A folder `<cache_dir>/images/<hash>` exists only complete: it is made beside and renamed. The hash of an image is the
SHA-256 of its `sha256sum.txt`, which lists every other file with its own (kms.md 6.6, measurement.md 6).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from typing import Protocol

from dstack.errors import ImageUnavailableError, InputError, MeasurementMalformedError, UnavailableError
from dstack.measurement.image import CHECKSUM_FILE_NAME, MAX_CHECKSUM_FILE, os_image_hash, parse_checksum_file
from dstack.values import Digest32, OsImageHash
from kms.turns import Turns

IMAGES, MEASUREMENTS, ALL = "images", "measurements", "all"

# How long an image that could not be had is not asked for again: strangers choose what they claim to run.
_RETRY_SECONDS = 60.0
_MOST_REMEMBERED = 1024
_PIECE = 1 << 20
_FETCHING = ".fetching."
_KEY = re.compile(r"(?:[0-9a-f]{2}){1,64}")


class ImageSource(Protocol):
    """Where images come from."""

    def fetch(self, name: OsImageHash, folder: Path) -> None:
        """Put the files of the image into *folder*, which is empty; nothing of them is believed.

        Raises:
            ImageUnavailableError: It could not be had within the limits.
        """
        ...


@dataclass(slots=True)
class ImageCache:
    """The images in one folder.

    Attributes:
        folder: Of upstream's `core.image.cache_dir`.
        source: Where missing images come from; None for nowhere.
        now: Seconds, monotonic.
    """

    folder: Path
    source: ImageSource | None
    now: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: Turns = field(default_factory=lambda: Turns("OS images: downloads"))
    _failed: dict[OsImageHash, tuple[float, str]] = field(default_factory=dict)

    def image(self, name: OsImageHash) -> Path:
        """The folder of an image; each of its files is what its list says.

        One image is fetched at a time; one that could not be had is not tried again for a minute.

        Raises:
            ImageUnavailableError: It is not here and could not be had, or too many wait for downloads.
            MeasurementMalformedError: What came is not that image.
        """
        folder = self.folder / IMAGES / name.hex()
        if (folder / CHECKSUM_FILE_NAME).is_file():
            return folder
        with self._turns.turn():
            if not (folder / CHECKSUM_FILE_NAME).is_file():
                self._fetch(name, folder)
            return folder

    def clear(self, *, image_hash: str, config_hash: str) -> None:
        """Forget an image, or a measurement; `all` is every one, empty is none.

        Raises:
            InputError: A name is not hexadecimal.
        """
        names = ((IMAGES, _key(image_hash)), (MEASUREMENTS, _key(config_hash)))
        with self._lock:
            for kind, name in names:
                if name == ALL:
                    _empty(self.folder / kind)
                    self._failed.clear()
                elif name:
                    _remove(self.folder / kind / name)
                    _remove(self.folder / kind / f"{name}.json")

    def _fetch(self, name: OsImageHash, folder: Path) -> None:
        if self.source is None:
            raise ImageUnavailableError(
                f"OS image {name.hex()}: not in {self.folder}, and core.image.download_url is unset"
            )
        since, why = self._failed.get(name, (-_RETRY_SECONDS, ""))
        if self.now() - since < _RETRY_SECONDS and why:
            raise ImageUnavailableError(f"OS image {name.hex()}: {why} (tried less than a minute ago)")
        try:
            self._fetch_now(self.source, name, folder)
        except (UnavailableError, MeasurementMalformedError) as exc:
            if len(self._failed) >= _MOST_REMEMBERED:
                self._failed.clear()
            self._failed[name] = (self.now(), str(exc))
            raise

    def _fetch_now(self, source: ImageSource, name: OsImageHash, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix=_FETCHING, dir=folder.parent) as made:
                fetched = Path(made) / "image"
                fetched.mkdir()
                source.fetch(name, fetched)
                verify_image(name, fetched)
                _sync(fetched)
                fetched.rename(folder)
        except OSError as exc:
            raise ImageUnavailableError(f"OS image {name.hex()}: {self.folder}: {exc.strerror or exc}") from exc


def verify_image(name: OsImageHash, folder: Path) -> dict[str, Digest32]:
    """Establish that *folder* holds the image *name*; files that its list does not name are removed.

    Returns:
        The digest of every file by its name.

    Raises:
        MeasurementMalformedError: The list is not the one that *name* names, or a file is missing or differs.
    """
    try:
        with (folder / CHECKSUM_FILE_NAME).open("rb") as stream:
            checksums = stream.read(MAX_CHECKSUM_FILE + 1)
    except OSError as exc:
        raise MeasurementMalformedError(f"OS image {name.hex()}: {CHECKSUM_FILE_NAME} is missing") from exc
    if not compare_digest(os_image_hash(checksums), name):
        raise MeasurementMalformedError(
            f"OS image {name.hex()}: its {CHECKSUM_FILE_NAME} has the SHA-256 {os_image_hash(checksums).hex()}"
        )
    listed = parse_checksum_file(checksums)
    for path in folder.iterdir():
        if path.name not in listed and path.name != CHECKSUM_FILE_NAME:
            _remove(path)
    for file, digest in listed.items():
        if not compare_digest(_sha256(folder / file), digest):
            raise MeasurementMalformedError(f"OS image {name.hex()}: {file} is missing or not what its list says")
    return listed


def _sha256(path: Path) -> bytes:
    """The digest of a plain file; of anything else, no digest at all."""
    if path.is_symlink() or not path.is_file():
        return b""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.digest()


def _key(name: str) -> str:
    """*name*, if it can be one of a file in the cache; nothing else of the disk can be named."""
    lower = name.lower()
    if lower not in ("", ALL) and not _KEY.fullmatch(lower):
        raise InputError("invalid cache key")
    return lower


def _empty(folder: Path) -> None:
    """What is being fetched there goes on."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith(_FETCHING):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _sync(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
