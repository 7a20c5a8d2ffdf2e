"""Sealing content of any length chunk by chunk: the STREAM construction over AES-256-GCM.

Hoang, Reyhanitabar, Rogaway, Vizar: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015. The
nonce of a chunk is seven zero bytes, its number (4, big endian) and whether it is the last (1). So no chunk can be
left out, moved, repeated or taken from another stream, and the end cannot be cut off. A key seals one stream, ever.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dstack.errors import KeyMalformedError, MessageMalformedError, SealError
from dstack.keys.sealing import KEY_SIZE, TAG_SIZE

CHUNK = 1 << 20
"""Bytes of content in every chunk but the last, which has 1 to so many."""

MAX_CONTENT = 16 << 30

_PREFIX = bytes(7)


@dataclass(frozen=True, slots=True)
class StreamShape:
    """How content of one size is cut into chunks.

    Raises:
        MessageMalformedError: The size is not 1 to `MAX_CONTENT`.
    """

    size: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_CONTENT:
            raise MessageMalformedError(f"content: want 1 to {MAX_CONTENT} bytes, got {self.size}")

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.size // CHUNK)

    def length(self, number: int) -> int:
        """Bytes of content in chunk *number*.

        Raises:
            MessageMalformedError: There is no chunk of that number.
        """
        if not 0 <= number < self.chunks:
            raise MessageMalformedError(f"chunk: want 0 to {self.chunks - 1}, got {number}")
        return CHUNK if number < self.chunks - 1 else self.size - CHUNK * (self.chunks - 1)

    def sealed_length(self, number: int) -> int:
        """Bytes of chunk *number* when it is sealed."""
        return self.length(number) + TAG_SIZE

    def sealed_size(self, first: int = 0) -> int:
        """Bytes of all sealed chunks from *first* on."""
        left = self.chunks - first
        return self.size - first * CHUNK + left * TAG_SIZE if left > 0 else 0


class StreamCipher:
    """Seals and opens the chunks of one stream.

    Args:
        key: 32 bytes, made for this stream alone.
        shape: How the content is cut; both sides know it from elsewhere.
        occasion: Bound into every chunk.

    Raises:
        KeyMalformedError: *key* is not 32 bytes.
    """

    def __init__(self, key: bytes, shape: StreamShape, occasion: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise KeyMalformedError(f"stream key: want {KEY_SIZE} bytes, got {len(key)}")
        self._aead = AESGCM(key)
        self._shape = shape
        self._occasion = occasion

    def seal(self, number: int, content: bytes) -> bytes:
        """Chunk *number*, sealed: the ciphertext and the tag (16); raises as `seal_into`."""
        sealed = bytearray(self._shape.sealed_length(number))
        self.seal_into(number, content, memoryview(sealed))
        return bytes(sealed)

    def seal_into(self, number: int, content: bytes | memoryview, sealed: memoryview) -> None:
        """Write chunk *number*, the ciphertext and the tag (16), into *sealed*, which has its sealed length.

        Raises:
            MessageMalformedError: There is no such chunk, or *content* has not its length.
        """
        if len(content) != self._shape.length(number):
            raise MessageMalformedError(
                f"chunk {number}: want {self._shape.length(number)} bytes of content, got {len(content)}"
            )
        self._aead.encrypt_into(self._nonce(number), content, self._occasion, sealed)

    def open(self, number: int, sealed: bytes) -> bytes:
        """The content of chunk *number*; raises as `open_into`."""
        content = bytearray(self._shape.length(number))
        self.open_into(number, sealed, memoryview(content))
        return bytes(content)

    def open_into(self, number: int, sealed: bytes | memoryview, content: memoryview) -> None:
        """Write the content of chunk *number* into *content*, which has its length.

        Raises:
            MessageMalformedError: There is no such chunk, or *sealed* has not its length.
            SealError: It was sealed with another key, in another place, for another occasion, or was changed; what
                *content* holds then means nothing.
        """
        if len(sealed) != self._shape.sealed_length(number):
            raise MessageMalformedError(
                f"chunk {number}: want {self._shape.sealed_length(number)} sealed bytes, got {len(sealed)}"
            )
        try:
            self._aead.decrypt_into(self._nonce(number), sealed, self._occasion, content)
        except InvalidTag as exc:
            raise SealError(f"chunk {number}: not of this stream, not in its place, or changed") from exc

    def _nonce(self, number: int) -> bytes:
        last = number == self._shape.chunks - 1
        return _PREFIX + number.to_bytes(4, "big") + bytes([last])
