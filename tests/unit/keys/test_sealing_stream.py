"""Streams of sealed chunks: position, end and occasion are authenticated."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import KeyMalformedError, MessageMalformedError, SealError
from dstack.keys.sealing_stream import CHUNK, MAX_CONTENT, StreamCipher, StreamShape

KEY = bytes(range(32))
CONTENT = bytes(range(256)) * (2 * CHUNK // 256) + b"the end"
SHAPE = StreamShape(len(CONTENT))
CIPHER = StreamCipher(KEY, SHAPE, b"occasion")


def chunk(number: int) -> bytes:
    """Chunk *number* of the content."""
    return CONTENT[number * CHUNK : (number + 1) * CHUNK]


def test_the_chunks_open_to_the_content_in_order() -> None:
    """Every chunk opens in its own place to what was sealed there."""
    assert [CIPHER.open(number, CIPHER.seal(number, chunk(number))) for number in range(3)] == [
        chunk(number) for number in range(3)
    ]


def test_a_chunk_is_aes_256_gcm_under_the_nonce_of_the_construction() -> None:
    """Another implementation of AES-GCM opens a chunk under seven zero bytes, its number and the last-flag."""
    plain = AESGCM(KEY)

    assert plain.decrypt(bytes(7) + bytes([0, 0, 0, 1, 0]), CIPHER.seal(1, chunk(1)), b"occasion") == chunk(1)
    assert plain.decrypt(bytes(7) + bytes([0, 0, 0, 2, 1]), CIPHER.seal(2, chunk(2)), b"occasion") == chunk(2)


@given(st.integers(1, 5 * CHUNK))
def test_shape_adds_up(size: int) -> None:
    """The chunks' lengths add up to the content's, and their sealed lengths to the stream's, from any chunk on."""
    shape = StreamShape(size)
    numbers = range(shape.chunks)

    assert sum(shape.length(number) for number in numbers) == size
    assert all(1 <= shape.length(number) <= CHUNK for number in numbers)
    for first in range(shape.chunks + 1):
        assert shape.sealed_size(first) == sum(shape.sealed_length(number) for number in numbers[first:])


def test_a_chunk_in_another_place_does_not_open() -> None:
    """Chunks cannot be swapped."""
    with pytest.raises(SealError, match="chunk 1: not of this stream"):
        CIPHER.open(1, CIPHER.seal(0, chunk(0)))


def test_the_end_cannot_be_moved() -> None:
    """A chunk that was not the last does not open as the last of a shorter stream, nor the last as one in between."""
    shorter = StreamCipher(KEY, StreamShape(CHUNK), b"occasion")
    exact = StreamCipher(KEY, StreamShape(2 * CHUNK), b"occasion")

    with pytest.raises(SealError, match="chunk 0"):
        shorter.open(0, CIPHER.seal(0, chunk(0)))
    with pytest.raises(SealError, match="chunk 1"):
        CIPHER.open(1, exact.seal(1, chunk(1)))


@pytest.mark.parametrize("other", [StreamCipher(bytes(32), SHAPE, b"occasion"), StreamCipher(KEY, SHAPE, b"another")])
def test_another_key_or_occasion_does_not_open(other: StreamCipher) -> None:
    """A chunk opens under its own key and occasion alone."""
    with pytest.raises(SealError, match="chunk 0"):
        other.open(0, CIPHER.seal(0, chunk(0)))


@given(st.integers(0, 7 + 16 - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    """A sealed chunk with one byte changed does not open."""
    sealed = bytearray(CIPHER.seal(2, chunk(2)))
    sealed[position] ^= change

    with pytest.raises(SealError, match="chunk 2"):
        CIPHER.open(2, bytes(sealed))


@pytest.mark.parametrize("size", [-1, 0, MAX_CONTENT + 1])
def test_content_out_of_bounds_has_no_shape(size: int) -> None:
    """Nothing, and more than 16 GiB, cannot be a stream."""
    with pytest.raises(MessageMalformedError, match=f"want 1 to {MAX_CONTENT} bytes, got {size}"):
        StreamShape(size)


def test_the_largest_content_has_numbers_for_all_its_chunks() -> None:
    """The number of the last chunk of 16 GiB fits its four bytes."""
    shape = StreamShape(MAX_CONTENT)

    assert shape.chunks == 16384
    assert shape.sealed_size() == MAX_CONTENT + 16384 * 16


def test_wrong_lengths_and_numbers_are_bad_input() -> None:
    """A chunk that is too short, too long or not there is refused before any cipher sees it."""
    with pytest.raises(MessageMalformedError, match=r"chunk 0: want \d+ bytes of content, got 3"):
        CIPHER.seal(0, b"abc")
    with pytest.raises(MessageMalformedError, match=r"chunk 2: want 23 sealed bytes, got 24"):
        CIPHER.open(2, bytes(24))
    with pytest.raises(MessageMalformedError, match="chunk: want 0 to 2, got 3"):
        CIPHER.open(3, bytes(24))
    with pytest.raises(KeyMalformedError, match="stream key: want 32 bytes, got 31"):
        StreamCipher(bytes(31), SHAPE, b"")
