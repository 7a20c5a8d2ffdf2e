"""Reading what a command line names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

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
                raw = _read(stream, limit + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(raw) > limit:
        raise InputError(f"{path}: want at most {limit} bytes, got more")
    return raw


def _read(stream: BinaryIO, most: int) -> bytes:
    """Read a file to its end, or *most* bytes of it, without asking for memory that its size does not need."""
    # A pipe, or a file of the kernel, has no size to go by.
    wanted = min(os.fstat(stream.fileno()).st_size + 1, most)
    raw = stream.read(wanted if wanted > 1 else most)
    # As many bytes as were asked for: it has grown since, or had no size.
    return raw + stream.read(most - len(raw)) if len(raw) == wanted < most else raw
