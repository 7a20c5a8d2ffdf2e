"""Sized bytes refuse every other size, and hexadecimal errors do not repeat their input."""

import pytest

from dstack.errors import InputError
from dstack.values import AppId, Register, bytes_from_hex


@pytest.mark.parametrize("size", [0, 47, 49, 96])
def test_a_register_is_48_bytes(size: int) -> None:
    """Any other number of bytes is refused, and nothing is padded."""
    with pytest.raises(InputError, match=f"Register: want 48 bytes, got {size}"):
        Register(bytes(size))


@pytest.mark.parametrize("text", ["AB" * 20, "ab" * 20, "0x" + "ab" * 20, "0X" + "Ab" * 20])
def test_hexadecimal_is_read_in_either_case_with_or_without_0x(text: str) -> None:
    """All forms give the same bytes."""
    assert AppId.from_hex(text) == bytes([0xAB]) * 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "key: want an even number of hexadecimal digits, got 3"),
        ("0x0x00", "key: want hexadecimal, got another character at position 1"),
        ("00 11", "key: want hexadecimal, got another character at position 2"),
        ("5ecret", "key: want hexadecimal, got another character at position 3"),
    ],
)
def test_an_error_says_where_and_does_not_repeat_the_text(text: str, message: str) -> None:
    """The text may be a key, so the error holds only a position."""
    with pytest.raises(InputError) as caught:
        bytes_from_hex(text, what="key")
    assert str(caught.value) == message
