"""App info in certificates."""

import json
from pathlib import Path

import msgpack
import pytest

from dstack.attestation.app_info import AppInfo, parse_app_info, serialise_app_info
from dstack.errors import EvidenceMalformedError

INFO = AppInfo(*(bytes((n,)) * 20 for n in range(8)))


def test_golden_app_info(project_root: Path) -> None:
    """Eight elements are written, eight or nine are read, to the same value."""
    case = json.loads((project_root / "tests/vectors/kms/certs.json").read_bytes())["app_info"]
    info = AppInfo(*map(bytes.fromhex, case["values"]))

    assert serialise_app_info(info).hex() == case["msgpack_8_fields"]
    assert [parse_app_info(bytes.fromhex(case[name])) for name in ("msgpack_8_fields", "msgpack_9_fields_head")] == [
        info,
        info,
    ]


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "one MessagePack value"),
        (serialise_app_info(INFO) + b"\0", "one MessagePack value"),
        (serialise_app_info(INFO)[:-1], "one MessagePack value"),
        (msgpack.packb([b""] * 7), "array of 8 or 9"),
        (msgpack.packb([b""] * 10), "array of 8 or 9"),
        (msgpack.packb({"app_id": b""}), "array of 8 or 9"),
        (msgpack.packb(["text"] * 8), "byte strings"),
        (bytes(65537), "at most 65536 bytes"),
    ],
)
def test_other_forms_are_refused(raw: bytes, what: str) -> None:
    """What is not an array of byte strings, to the last byte, is no app info."""
    with pytest.raises(EvidenceMalformedError, match=what):
        parse_app_info(raw)
