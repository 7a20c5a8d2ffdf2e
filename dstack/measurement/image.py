"""An OS image: its list of files, whose SHA-256 names the image, and its description (measurement.md 6, vmm.md 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Digest32, OsImageHash

MAX_CHECKSUM_FILE = 64 * 1024
CHECKSUM_FILE_NAME = "sha256sum.txt"
METADATA_NAME = "metadata.json"
MAX_METADATA = 64 * 1024

# `sha256sum` writes a digest, a space, a space or a star for binary mode, and the name.
_NAME = r"[A-Za-z0-9._+-]{1,255}"
_LINE = re.compile(rf"([0-9a-f]{{64}}) [ *]({_NAME})")


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """What an image's metadata.json says of its parts: names of files in its folder, and how it is started.

    Attributes:
        firmware: File name.
        kernel: File name.
        initrd: File name.
        cmdline: The kernel's command line, without what QEMU adds.
        rootfs: File name; no part of sha256sum.txt, since the command line names its content.
        version: Of the image; None for old ones.
        ovmf_variant: Which order of RTMR0 events its firmware has; None for the oldest.
    """

    firmware: str
    kernel: str
    initrd: str
    cmdline: str
    rootfs: str | None
    version: str | None
    ovmf_variant: str | None


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


def require_listed(name: str, sha256_digest: bytes, listed: Mapping[str, Digest32]) -> None:
    """Refuse a file that is not the one that an image's list has under its name.

    Raises:
        MeasurementMalformedError: It is not listed, or is another.
    """
    if name not in listed:
        raise MeasurementMalformedError(f"{name}: {CHECKSUM_FILE_NAME} does not list it")
    if not compare_digest(sha256_digest, listed[name]):
        raise MeasurementMalformedError(f"{name}: not the file that {CHECKSUM_FILE_NAME} lists")


def parse_image_metadata(raw: bytes) -> ImageMetadata:
    """Read an image's metadata.json; members that no measurement depends on are skipped.

    Raises:
        MeasurementMalformedError: Another form, or a file name that is a path.
    """
    value = parse_json(raw, what=METADATA_NAME, limit=MAX_METADATA, error=MeasurementMalformedError)
    members = Members.of(value, what=METADATA_NAME, error=MeasurementMalformedError)
    return ImageMetadata(
        firmware=_file_name(members, "bios"),
        kernel=_file_name(members, "kernel"),
        initrd=_file_name(members, "initrd"),
        cmdline=members.text("cmdline"),
        rootfs=_file_name(members, "rootfs") if members.has("rootfs") else None,
        version=members.text("version") if members.has("version") else None,
        ovmf_variant=members.text("ovmf_variant") if members.has("ovmf_variant") else None,
    )


def os_image_hash(checksum_file: bytes) -> OsImageHash:
    """Name an OS image: SHA-256 of its sha256sum.txt."""
    return OsImageHash(sha256(checksum_file).digest())


def _file_name(members: Members, name: str) -> str:
    value = members.text(name)
    if re.fullmatch(_NAME, value) is None or value in (".", ".."):
        raise MeasurementMalformedError(f"{METADATA_NAME}: {name}: want a plain file name, got {value[:80]!r}")
    return value


def _parse_line(line: str, number: int) -> tuple[str, Digest32]:
    match = _LINE.fullmatch(line)
    if match is None or match[2] in (".", ".."):
        raise MeasurementMalformedError(f"checksum file: line {number}: want a SHA-256 and a plain file name")
    if match[2] == CHECKSUM_FILE_NAME:
        raise MeasurementMalformedError(f"checksum file: line {number}: it lists itself")
    return match[2], Digest32.from_hex(match[1])
