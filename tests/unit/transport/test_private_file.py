"""Private files: mode, replacement, and never over something that is there."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from dstack.transport.private_file import create_private, replace_private

if TYPE_CHECKING:
    from pathlib import Path


def test_created_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """A created file holds the content, has mode 0600, and nothing else is left in the folder."""
    path = tmp_path / "key"

    create_private(path, b"content")

    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_create_leaves_an_existing_file_alone(tmp_path: Path) -> None:
    """Creating over an existing file is refused and changes nothing."""
    path = tmp_path / "key"
    path.write_bytes(b"old")

    with pytest.raises(FileExistsError, match="key"):
        create_private(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_takes_away_the_readability_of_the_old_file(tmp_path: Path) -> None:
    """Replacing a world-readable file leaves the new content with mode 0600."""
    path = tmp_path / "key"
    path.write_bytes(b"old")
    path.chmod(0o644)

    replace_private(path, b"new")

    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_replace_does_not_follow_a_link(tmp_path: Path) -> None:
    """A symbolic link at the path is replaced; the file it points at keeps its content."""
    target = tmp_path / "elsewhere"
    target.write_bytes(b"untouched")
    path = tmp_path / "key"
    path.symlink_to(target)

    replace_private(path, b"new")

    assert target.read_bytes() == b"untouched"
    assert not path.is_symlink()
