"""JSON where two readers must never disagree: no duplicate members, no NaN, no lone surrogates, bounded size.

A duplicate member is read as its first by one parser and as its last by another; a verifier that guesses can be led to
approve what the machine does not do.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from dstack.errors import InputError
from dstack.values import SizedBytes, bytes_from_hex

MAX_DEPTH = 64
# Values in arrays and objects: a text of small ones would take thirty times its size in memory.
MAX_VALUES = 500_000

_T = TypeVar("_T")
_SizedT = TypeVar("_SizedT", bound=SizedBytes)

# A string (or its unfinished start, so that the search is linear), or a bracket outside of strings.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)


def parse_json(raw: str | bytes, *, what: str, limit: int, error: type[InputError]) -> object:
    """Read one JSON text.

    Args:
        raw: The text; bytes must be UTF-8 without a byte order mark.
        what: Names the text in errors.
        limit: Most bytes of UTF-8 that are read.
        error: The class that is raised.

    Raises:
        InputError: As *error*: too long, not UTF-8, not JSON, nested too deep, of too many values, or with a duplicate
            member.
    """
    try:
        encoded = raw.encode() if isinstance(raw, str) else raw
        if len(encoded) > limit:
            raise error(f"{what}: want at most {limit} bytes, got {len(encoded)}")
        text = encoded.decode()
        _check_values(text)
        _check_depth(text)
        value = json.loads(text, object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
        # An escape such as \ud800 makes a string that no UTF-8 can carry, so it could be neither hashed nor shown.
        if b"\\u" in encoded:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError as exc:
        raise error(f"{what}: want UTF-8, got other bytes or a lone surrogate") from exc
    except ValueError as exc:
        raise error(f"{what}: not JSON: {exc}") from exc
    return value


@dataclass(frozen=True, slots=True)
class Members:
    """One JSON object whose members are read by name and type, each problem being one sentence."""

    values: dict[str, object]
    what: str
    error: type[InputError]

    @classmethod
    def of(cls, value: object, *, what: str, error: type[InputError]) -> Members:
        """Take *value* if it is a JSON object."""
        if not isinstance(value, dict):
            raise error(f"{what}: want a JSON object, got {_kind(value)}")
        return cls(value, what, error)

    def refuse_others(self, known: frozenset[str]) -> None:
        """Refuse a member that is not in *known*."""
        unknown = min(self.values.keys() - known, default=None)
        if unknown is not None:
            raise self.error(f"{self.what}: unknown member {unknown[:80]!r}")

    def has(self, name: str) -> bool:
        """Say whether *name* is there and not null."""
        return self.values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """Read a string; without *default* it is required."""
        return self._typed(name, str, "a string", default)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Read a boolean; without *default* it is required."""
        return self._typed(name, bool, "true or false", default)

    def integer(self, name: str, default: int | None = None, *, maximum: int) -> int:
        """Read an integer from 0 to *maximum*; without *default* it is required."""
        number = self._typed(name, int, "an integer", default)
        if not 0 <= number <= maximum:
            raise self.error(f"{self.what}: {name}: want 0 to {maximum}, got {number}")
        return number

    def texts(self, name: str) -> tuple[str, ...]:
        """Read an array of strings; none when it is absent."""
        items = self._typed(name, list, "an array", [])
        for item in items:
            if not isinstance(item, str):
                raise self.error(f"{self.what}: {name}: want an array of strings, got {_kind(item)} in it")
        return tuple(items)

    def hexadecimal(self, name: str, default: str | None = None) -> bytes:
        """Read bytes written in hexadecimal; without *default* they are required."""
        digits = self.text(name, default)
        try:
            return bytes_from_hex(digits, what=name)
        except InputError as exc:
            raise self.error(f"{self.what}: {exc}") from exc

    def sized(self, name: str, kind: type[_SizedT]) -> _SizedT:
        """Read bytes of the length of *kind*, written in hexadecimal."""
        raw = self.hexadecimal(name)
        try:
            return kind(raw)
        except InputError as exc:
            raise self.error(f"{self.what}: {name}: {exc}") from exc

    def _typed(self, name: str, kind: type[_T], wanted: str, default: _T | None) -> _T:
        if name not in self.values:
            if default is None:
                raise self.error(f"{self.what}: member {name!r} is missing")
            return default
        value = self.values[name]
        if type(value) is not kind:
            raise self.error(f"{self.what}: {name}: want {wanted}, got {_kind(value)}")
        return value


_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


def _check_values(text: str) -> None:
    """Bound what is built: every value but the first follows one of these characters; those in strings count too."""
    values = sum(text.count(character) for character in ",[{")
    if values > MAX_VALUES:
        raise ValueError(f"want at most {MAX_VALUES} commas and opening brackets, got {values}")


def _check_depth(text: str) -> None:
    """Bound the nesting by ourselves: libraries raise Python's own limit so far that a parser crashes below it."""
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"member {name[:80]!r} appears twice")
        members[name] = value
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
