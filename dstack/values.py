"""Sized, typed bytes: a value that exists has the right length.

Hexadecimal exists only at edges: `from_hex` reads it, with or without `0x`, in either case; `.hex()` writes it.
"""

from __future__ import annotations

from typing import ClassVar, Self

from dstack.errors import InputError

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")


class SizedBytes(bytes):
    """Bytes of one exact length; the subclass says which."""

    SIZE: ClassVar[int]

    def __new__(cls, raw: bytes) -> Self:
        """Take *raw* if it has the length of this class.

        Raises:
            InputError: It has another length.
        """
        if len(raw) != cls.SIZE:
            raise InputError(f"{cls.__name__}: want {cls.SIZE} bytes, got {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read hexadecimal, optionally with one leading `0x`.

        Raises:
            InputError: *text* is not hexadecimal, or not of this length.
        """
        return cls(bytes_from_hex(text, what=cls.__name__))


class Register(SizedBytes):
    """The 48 bytes of a TDX measurement register: MRTD or an RTMR."""

    SIZE = 48


class Digest32(SizedBytes):
    """A 32-byte digest or identity."""

    SIZE = 32


class ComposeHash(Digest32):
    """SHA-256 of the bytes of an app-compose.json."""


class OsImageHash(Digest32):
    """SHA-256 of an OS image's sha256sum.txt."""


class DeviceId(Digest32):
    """SHA-256 of a platform's PPID."""


class AppId(SizedBytes):
    """The 20 bytes that name an app; on chain, its contract's address."""

    SIZE = 20


class InstanceId(SizedBytes):
    """The 20 bytes that name one running copy of an app."""

    SIZE = 20


class ReportData(SizedBytes):
    """The 64 bytes a guest chooses to have signed in a quote."""

    SIZE = 64


def bytes_from_hex(text: str, *, what: str) -> bytes:
    """Read hexadecimal of any length, with or without `0x`; *what* names the value in the error.

    The error says where the text goes wrong and never repeats it: it may be a key.

    Raises:
        InputError: *text* is not plain hexadecimal of even length.
    """
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    wrong = next((at for at, char in enumerate(digits) if char not in _HEX_DIGITS), None)
    if wrong is not None:
        raise InputError(f"{what}: want hexadecimal, got another character at position {wrong}")
    if len(digits) % 2:
        raise InputError(f"{what}: want an even number of hexadecimal digits, got {len(digits)}")
    return bytes.fromhex(digits)
