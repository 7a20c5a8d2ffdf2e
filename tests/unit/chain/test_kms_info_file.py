"""The file that says what KmsAuth shall publish about the KMS."""

from __future__ import annotations

import json

import pytest

from dstack.chain.action_data import KmsInfo
from dstack.chain.kms_info_file import MAX_BYTES, parse_kms_info_file
from dstack.errors import InputError

WHOLE = {"k256_pubkey": "02" * 33, "ca_pubkey": "04" * 65, "quote": "0a0b", "eventlog": ""}


def written(**changes: object) -> bytes:
    """The file, with *changes*; None leaves a member out."""
    members = {name: value for name, value in (WHOLE | changes).items() if value is not None}
    return json.dumps(members).encode()


def test_the_file_is_read_whole() -> None:
    """Each member comes out as its bytes; an event log may be empty."""
    assert parse_kms_info_file(written()) == KmsInfo(b"\x02" * 33, b"\x04" * 65, b"\x0a\x0b", b"")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quote": None}, "quote"),
        ({"quote": "0x0a0"}, "quote"),
        ({"quote": 7}, "quote"),
        ({"qoute": "0a"}, "qoute"),
        ({"ca_pubkey": ""}, "want both public keys"),
        ({"quote": "00" * MAX_BYTES}, f"want at most {MAX_BYTES} bytes of data, got"),
    ],
)
def test_what_is_written_wrongly_is_refused(changes: dict[str, object], sentence: str) -> None:
    """A member missing, unknown, of another form or too long is named."""
    with pytest.raises(InputError, match=sentence):
        parse_kms_info_file(written(**changes))
