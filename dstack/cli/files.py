"""Reading what a command line names."""

from __future__ import annotations

import sys
from pathlib import Path

from dstack.errors import InputError


def read_input(path: str, *, limit: int) -> bytes:
    """Read a file, or standard input for `-`.

    Args:
        path: File name or `-`.
        limit: Most bytes that are taken; one more is refused.

    Raises:
        InputError: It cannot be read, or is larger than *limit*.
    """
    try:
        if path == "-":
            raw = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as stream:
                raw = stream.read(limit + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(raw) > limit:
        raise InputError(f"{path}: want at most {limit} bytes, got more")
    return raw
