"""Reading files: all of them up to a limit, whatever they say of their size."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.cli.files import read_input
from dstack.errors import InputError


@pytest.mark.parametrize("size", [0, 1, 9, 10])
def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path, size: int) -> None:
    """Also an empty one, and one of exactly the limit."""
    path = tmp_path / "file"
    path.write_bytes(bytes(size))

    assert read_input(str(path), limit=10) == bytes(size)


@pytest.mark.parametrize("size", [11, 100_000])
def test_a_larger_file_is_refused(tmp_path: Path, size: int) -> None:
    """By one byte, or by many."""
    path = tmp_path / "file"
    path.write_bytes(bytes(size))

    with pytest.raises(InputError, match="want at most 10 bytes, got more"):
        read_input(str(path), limit=10)


def test_a_file_of_unknown_size_is_read() -> None:
    """The kernel says that its files have no bytes."""
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("no /proc")

    assert b"VmPeak" in read_input(str(path), limit=100_000)
    with pytest.raises(InputError, match="want at most 10 bytes, got more"):
        read_input(str(path), limit=10)
