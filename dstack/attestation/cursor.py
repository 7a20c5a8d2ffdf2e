"""A cursor over bytes: every read is bounded, and running out names the field."""

from __future__ import annotations

from dstack.errors import InputError


class Cursor:
    """Reads little-endian fields from the front of *raw*; a short read raises *error* naming the field."""

    __slots__ = ("_at", "_error", "_raw")

    def __init__(self, raw: bytes, error: type[InputError]) -> None:
        self._raw = raw
        self._at = 0
        self._error = error

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._raw) - self._at

    def take(self, size: int, what: str) -> bytes:
        """The next *size* bytes."""
        at = self._at
        piece = self._raw[at : at + size]
        if len(piece) != size:
            raise self._error(f"{what}: want {size} bytes at offset {at}, {self.remaining} are left")
        self._at = at + size
        return piece

    def uint(self, size: int, what: str) -> int:
        """The next *size* bytes as an unsigned little-endian number."""
        return int.from_bytes(self.take(size, what), "little")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.remaining, "rest")

    def end(self, what: str) -> None:
        """Require that nothing is left."""
        if self.remaining:
            raise self._error(f"{what}: {self.remaining} unexpected bytes at offset {self._at}")
