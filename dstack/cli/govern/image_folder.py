"""An OS image on disk, measured: its hash, and the registers that follow from it alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dstack.chain.review import MeasuredImage
from dstack.cli.files import read_input
from dstack.errors import InputError
from dstack.measurement.document import (
    DOCUMENT_NAME,
    MAX_DOCUMENT,
    parse_measurement_document,
    shapeless_registers,
)
from dstack.measurement.image import (
    CHECKSUM_FILE_NAME,
    MAX_CHECKSUM_FILE,
    os_image_hash,
    parse_checksum_file,
    require_listed,
)
from dstack.values import Register


def measure_image(folder: str) -> MeasuredImage:
    """Hash every file that the image's sha256sum.txt lists, and predict registers from its measurement document.

    Raises:
        InputError: A file is missing or cannot be read.
        MeasurementMalformedError: A file is not the one that is listed, or the list or document is malformed.
    """
    root = Path(folder)
    checksum_file = read_input(str(root / CHECKSUM_FILE_NAME), limit=MAX_CHECKSUM_FILE)
    listed = parse_checksum_file(checksum_file)
    for name in listed:
        require_listed(name, _sha256(root / name), listed)
    registers: dict[str, Register] = {}
    if DOCUMENT_NAME in listed:
        document = parse_measurement_document(read_input(str(root / DOCUMENT_NAME), limit=MAX_DOCUMENT))
        registers = shapeless_registers(document)
    return MeasuredImage(os_image_hash(checksum_file), registers)


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
