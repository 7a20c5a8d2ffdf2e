"""Files only their owner may read, written so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def replace_private(path: Path, content: bytes) -> None:
    """Write *content* to *path* with mode 0600, in place of whatever was there.

    Raises:
        OSError: It could not be written; *path* is then unchanged.
    """
    with _beside(path, content) as written:
        written.replace(path)


def create_private(path: Path, content: bytes) -> None:
    """Write *content* to *path* with mode 0600, unless something is there already.

    Raises:
        FileExistsError: *path* exists; it is unchanged, also when two writers race.
        OSError: It could not be written.
    """
    with _beside(path, content) as written:
        path.hardlink_to(written)


@contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    """A complete, synced file in the folder of *path*; afterwards it is gone and the folder is synced."""
    written = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(written, _FLAGS, 0o600), "wb") as stream:  # noqa: PTH123 - needs the flags
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield written
    finally:
        written.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk keep what was renamed, linked or removed in *folder*.

    Raises:
        OSError: It refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
