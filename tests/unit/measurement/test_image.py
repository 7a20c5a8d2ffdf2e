"""The list of an image's files is read strictly, and its SHA-256 names the image."""

from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.image import MAX_CHECKSUM_FILE, os_image_hash, parse_checksum_file
from dstack.values import Digest32

Load = Callable[[str], Any]

DIGEST = "ab" * 32


def test_files_are_listed_in_order() -> None:
    """Text and binary mode are read."""
    raw = f"{DIGEST}  ovmf.fd\n{'cd' * 32} *bzImage\n".encode()

    assert list(parse_checksum_file(raw).items()) == [
        ("ovmf.fd", Digest32(b"\xab" * 32)),
        ("bzImage", Digest32(b"\xcd" * 32)),
    ]


def test_the_hash_of_the_list_names_the_image(golden: Load) -> None:
    """The golden VM config has the hash of the golden list."""
    case = golden("lite_document.json")

    digest = os_image_hash(b64decode(case["checksum_file_base64"]))

    assert digest.hex() == case["expected"][0]["vm_config"]["os_image_hash"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "want lines that each end in a newline"),
        (f"{DIGEST}  a".encode(), "want lines that each end in a newline"),
        (f"{DIGEST}  a\n\n".encode(), "line 2: want a SHA-256 and a plain file name"),
        (f"{DIGEST}  a\r\n".encode(), "line 1: want a SHA-256 and a plain file name"),
        (f"{DIGEST} a\n".encode(), "line 1: want a SHA-256 and a plain file name"),
        (f"{DIGEST[2:]}  a\n".encode(), "line 1: want a SHA-256"),
        (f"{DIGEST.upper()}  a\n".encode(), "line 1: want a SHA-256"),
        (f"{DIGEST}  ../a\n".encode(), "line 1: want a SHA-256 and a plain file name"),
        (f"{DIGEST}  ..\n".encode(), "line 1: want a SHA-256 and a plain file name"),
        (f"{DIGEST}  a\n{DIGEST}  a\n".encode(), "line 2: a is listed twice"),
        (f"{DIGEST}  sha256sum.txt\n".encode(), "line 1: it lists itself"),
        (f"{DIGEST}  é\n".encode(), "want ASCII text"),
        (b"x" * (MAX_CHECKSUM_FILE + 1), "want at most 65536 bytes, got 65537"),
    ],
)
def test_another_list_is_refused(raw: bytes, message: str) -> None:
    """Among them paths, a file listed twice, and a list of itself."""
    with pytest.raises(MeasurementMalformedError, match=f"checksum file: {message}"):
        parse_checksum_file(raw)
