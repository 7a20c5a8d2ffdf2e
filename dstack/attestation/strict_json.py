"""JSON objects read strictly: no duplicate names, no NaN, every field of its type, bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from dstack.errors import CollateralMalformedError, InputError
from dstack.values import bytes_from_hex

MAX_TEXT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class JsonObject:
    """One JSON object; `what` names it in errors. Each accessor requires the field and its type."""

    what: str
    fields: dict[str, object]

    def text(self, name: str) -> str:
        """A string field."""
        value = self._field(name)
        return value if isinstance(value, str) else self._refuse(name, "a string")

    def number(self, name: str, *, limit: int = 2**32) -> int:
        """An integer field in 0 <= n < *limit*."""
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
            self._refuse(name, f"an integer below {limit}")
        return value

    def hexadecimal(self, name: str, size: int | None = None) -> bytes:
        """A hexadecimal string field of *size* bytes, or of any size."""
        try:
            raw = bytes_from_hex(self.text(name), what=f"{self.what}: {name}")
        except InputError as exc:
            raise CollateralMalformedError(str(exc)) from exc
        return raw if size in (None, len(raw)) else self._refuse(name, f"{size} bytes of hexadecimal")

    def moment(self, name: str) -> datetime:
        """A time field in Intel's form, 2025-06-19T10:16:03Z."""
        try:
            return datetime.strptime(self.text(name), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            self._refuse(name, "a time such as 2025-06-19T10:16:03Z")

    def inner(self, name: str) -> JsonObject:
        """An object field."""
        value = self._field(name)
        return JsonObject(f"{self.what}.{name}", value) if isinstance(value, dict) else self._refuse(name, "an object")

    def inners(self, name: str) -> tuple[JsonObject, ...]:
        """A field that is an array of objects."""
        value = self._field(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self._refuse(name, "an array of objects")
        return tuple(JsonObject(f"{self.what}.{name}[{at}]", item) for at, item in enumerate(value))

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings, or nothing when the field is absent."""
        value = self.fields.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(name, "an array of strings")
        return tuple(value)

    def _field(self, name: str) -> object:
        return self.fields[name] if name in self.fields else self._refuse(name, "it to be present")

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        raise CollateralMalformedError(f"{self.what}: {name}: want {wanted}")


def parse_object(text: str | bytes, *, what: str) -> JsonObject:
    """Read *text* as exactly one JSON object.

    Raises:
        CollateralMalformedError: It is too long, not UTF-8, not JSON, not an object, or repeats a name anywhere.
    """
    if len(text) > MAX_TEXT:
        raise CollateralMalformedError(f"{what}: want at most {MAX_TEXT} bytes, got {len(text)}")
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise CollateralMalformedError(f"{what}: want JSON without duplicate names") from exc
    if not isinstance(value, dict):
        raise CollateralMalformedError(f"{what}: want a JSON object")
    return JsonObject(what, value)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("duplicate name")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
