"""An OS image's list of files, whose SHA-256 names the image (measurement.md 6)."""

from __future__ import annotations

import re
from hashlib import sha256

from dstack.errors import MeasurementMalformedError
from dstack.values import Digest32, OsImageHash

MAX_CHECKSUM_FILE = 64 * 1024
CHECKSUM_FILE_NAME = "sha256sum.txt"

# `sha256sum` writes a digest, a space, a space or a star for binary mode, and the name.
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9._+-]{1,255})")


def parse_checksum_file(raw: bytes) -> dict[str, Digest32]:
    """Read the lines of a sha256sum.txt.

    Says nothing of the files: whoever has one compares its SHA-256.

    Args:
        raw: At most 64 KiB; every line ends in a newline.

    Returns:
        Digest by plain file name, in the order of the file.

    Raises:
        MeasurementMalformedError: Another form, a name that is a path or listed twice, or the list itself.
    """
    if len(raw) > MAX_CHECKSUM_FILE:
        raise MeasurementMalformedError(f"checksum file: want at most {MAX_CHECKSUM_FILE} bytes, got {len(raw)}")
    try:
        *lines, rest = raw.decode("ascii").split("\n")
    except UnicodeDecodeError as exc:
        raise MeasurementMalformedError("checksum file: want ASCII text") from exc
    if rest or not lines:
        raise MeasurementMalformedError("checksum file: want lines that each end in a newline")
    digests: dict[str, Digest32] = {}
    for number, line in enumerate(lines, 1):
        name, digest = _parse_line(line, number)
        if name in digests:
            raise MeasurementMalformedError(f"checksum file: line {number}: {name} is listed twice")
        digests[name] = digest
    return digests


def os_image_hash(checksum_file: bytes) -> OsImageHash:
    """Name an OS image: SHA-256 of its sha256sum.txt."""
    return OsImageHash(sha256(checksum_file).digest())


def _parse_line(line: str, number: int) -> tuple[str, Digest32]:
    match = _LINE.fullmatch(line)
    if match is None or match[2] in (".", ".."):
        raise MeasurementMalformedError(f"checksum file: line {number}: want a SHA-256 and a plain file name")
    if match[2] == CHECKSUM_FILE_NAME:
        raise MeasurementMalformedError(f"checksum file: line {number}: it lists itself")
    return match[2], Digest32.from_hex(match[1])
