"""Frames and messages between a guest and a local key provider."""

from __future__ import annotations

import pytest

from dstack.errors import MessageMalformedError
from dstack.wire.key_provider import (
    BOX_LIMIT,
    FRAME_LIMIT,
    QUOTE_LIMIT,
    SealingKeyAnswer,
    SealingKeyRequest,
    frame,
    framed_size,
    parse_answer,
    parse_request,
    serialise_answer,
    serialise_request,
)


def test_messages_are_json_with_decimal_bytes() -> None:
    """The bytes on the wire, and back."""
    request = SealingKeyRequest(b"\1\2\xff")
    answer = SealingKeyAnswer(b"\1\2", b"\3\4")
    assert frame(serialise_request(request)) == b'\0\0\0\x13{"quote":[1,2,255]}'
    assert serialise_answer(answer) == b'{"encrypted_key":[1,2],"provider_quote":[3,4]}'
    assert parse_request(serialise_request(request)) == request
    assert parse_answer(serialise_answer(answer)) == answer
    assert parse_answer(b' {"extra": 1, "provider_quote": [], "encrypted_key": [0]}') == SealingKeyAnswer(b"\0", b"")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0", "want 4 bytes of length, got 3"),
        (bytes(4), f"want 1 to {FRAME_LIMIT} bytes, got 0"),
        ((FRAME_LIMIT + 1).to_bytes(4, "big"), f"want 1 to {FRAME_LIMIT} bytes, got {FRAME_LIMIT + 1}"),
        (b"\xff\xff\xff\xff", f"want 1 to {FRAME_LIMIT} bytes, got 4294967295"),
    ],
)
def test_a_frame_says_a_sane_length(head: bytes, said: str) -> None:
    """Nothing is received for a length that no content has."""
    with pytest.raises(MessageMalformedError, match=said):
        framed_size(head)
    assert framed_size(FRAME_LIMIT.to_bytes(4, "big")) == FRAME_LIMIT
    with pytest.raises(MessageMalformedError, match="got 0"):
        frame(b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"[]", "want a JSON object"),
        (b"{}", "quote: want an array of at most 65536 bytes, got NoneType"),
        (b'{"quote": "01"}', "quote: want an array of at most 65536 bytes, got str"),
        (b'{"quote": [256]}', "want numbers from 0 to 255"),
        (b'{"quote": [-1]}', "want numbers from 0 to 255"),
        (b'{"quote": [true]}', "want numbers from 0 to 255"),
        (b'{"quote": [1.0]}', "want numbers from 0 to 255"),
        (b'{"quote": [1], "quote": [2]}', "quote"),
        (b'{"quote": [' + b",".join([b"0"] * (QUOTE_LIMIT + 1)) + b"]}", "got 65537 of them"),
    ],
)
def test_malformed_requests_are_refused(content: bytes, said: str) -> None:
    """Each with what was wanted."""
    with pytest.raises(MessageMalformedError, match=said):
        parse_request(content)


def test_malformed_answers_are_refused() -> None:
    """A box is short; both members must be there."""
    long = b'{"encrypted_key": [' + b",".join([b"0"] * (BOX_LIMIT + 1)) + b'], "provider_quote": [1]}'
    with pytest.raises(MessageMalformedError, match=f"encrypted_key: want an array of at most {BOX_LIMIT} bytes"):
        parse_answer(long)
    with pytest.raises(MessageMalformedError, match="provider_quote: want an array"):
        parse_answer(b'{"encrypted_key": [1]}')
