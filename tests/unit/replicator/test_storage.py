"""The secure file: written once, by its owner, and never over another."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dstack.errors import KeystoreError
from replicator.documents import MAX_SECURE_FILE
from replicator.storage import SecureFile


def test_same_content_twice_is_no_error(tmp_path: Path) -> None:
    """Writing the same content again succeeds, so that an interrupted handover can be completed."""
    secure_file = SecureFile(tmp_path / "secure-file")

    secure_file.create(b"content")
    secure_file.create(b"content")

    assert secure_file.read() == b"content"
    assert stat.S_IMODE(secure_file.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"x" * (MAX_SECURE_FILE + 1)])
def test_content_out_of_bounds_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty and too large content is neither written nor read."""
    secure_file = SecureFile(tmp_path / "secure-file")

    with pytest.raises(KeystoreError, match=f"want 1 to {MAX_SECURE_FILE} bytes"):
        secure_file.create(content)
    assert not secure_file.exists()

    secure_file.path.write_bytes(content)
    with pytest.raises(KeystoreError, match=f"want 1 to {MAX_SECURE_FILE} bytes"):
        secure_file.read()


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    """A link in the place of the secure file is not followed and not replaced."""
    path = tmp_path / "secure-file"
    path.symlink_to(tmp_path / "elsewhere")

    assert SecureFile(path).exists()
    with pytest.raises(KeystoreError, match="cannot be read"):
        SecureFile(path).create(b"content")

    assert not (tmp_path / "elsewhere").exists()
