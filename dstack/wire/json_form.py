"""Messages as JSON, and as values that came from JSON or a query (kms.md 1.2).

Bytes are hexadecimal without `0x`; the reader takes any number of leading `0x` and either case. Unknown names are
ignored and missing ones take their default, so that versions understand each other; a name that occurs twice is
refused, so that nobody reads another value than we do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from dstack.errors import MessageMalformedError
from dstack.wire.fields import FieldSpec, Kind, specs

Message = TypeVar("Message")

_PREFIX = re.compile(r"\A(?:0x)*+")

LARGEST = {Kind.UINT32: (1 << 32) - 1, Kind.UINT64: (1 << 64) - 1}

MAX_VALUES = 100_000
"""In one text: of ten million small values nobody else would have a turn for seconds."""


def to_json(message: object) -> str:
    """The compact JSON of a message: upstream's fields all, in the order of their declaration; ours if set."""
    return json.dumps(_tree(message), separators=(",", ":"), ensure_ascii=False)


def from_json(message: type[Message], text: str | bytes) -> Message:
    """Read a message from JSON.

    Raises:
        MessageMalformedError: Not a JSON object in UTF-8, or of too many values, or a field is not of its kind; the
            message names the field.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        # Every value but the first follows one of these; those in strings count too.
        if sum(map(text.count, ",[{")) > MAX_VALUES:
            raise MessageMalformedError(f"{message.__name__}: want at most {MAX_VALUES} commas and opening brackets")
        tree = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise MessageMalformedError(f"{message.__name__}: not JSON") from exc
    return from_tree(message, tree)


def from_tree(message: type[Message], tree: object, *, path: str = "") -> Message:
    """Make a message of what `json.loads` returned.

    Raises:
        MessageMalformedError: As `from_json`.
    """
    if not isinstance(tree, Mapping):
        raise MessageMalformedError(f"{path or message.__name__}: want an object, got {_kind_of(tree)}")
    given = {spec.name: _pick(spec, tree, path) for spec in specs(message) if _present(spec, tree)}
    return message(**given)


def _present(spec: FieldSpec, tree: Mapping[str, object]) -> bool:
    return spec.name in tree or spec.alias in tree


def _pick(spec: FieldSpec, tree: Mapping[str, object], path: str) -> object:
    value = tree[spec.name] if spec.name in tree else tree[str(spec.alias)]
    name = f"{path}.{spec.name}" if path else spec.name
    if not spec.repeated:
        return None if value is None and spec.optional else _scalar(spec, value, name)
    if not isinstance(value, list):
        raise MessageMalformedError(f"{name}: want a list, got {_kind_of(value)}")
    return tuple(_scalar(spec, each, f"{name}[{index}]") for index, each in enumerate(value))


def _scalar(spec: FieldSpec, value: object, name: str) -> object:
    if spec.message is not None:
        return from_tree(spec.message, value, path=name)
    if spec.kind in LARGEST:
        return _number(spec.kind, value, name)
    if spec.kind is Kind.BOOL:
        if not isinstance(value, bool):
            raise MessageMalformedError(f"{name}: want true or false, got {_kind_of(value)}")
        return value
    if not isinstance(value, str):
        raise MessageMalformedError(f"{name}: want text, got {_kind_of(value)}")
    return _text(value, name) if spec.kind is Kind.STRING else _octets(value, name)


def _number(kind: Kind, value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise MessageMalformedError(f"{name}: want a whole number, got {_kind_of(value)}")
    if not 0 <= value <= LARGEST[kind]:
        raise MessageMalformedError(f"{name}: want a number from 0 to {LARGEST[kind]}")
    return value


def _text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise MessageMalformedError(f"{name}: half of a surrogate pair is no text") from exc
    return value


def _octets(value: str, name: str) -> bytes:
    digits = _PREFIX.sub("", value, 1)
    try:
        octets = bytes.fromhex(digits)
    except ValueError:
        octets = b""
    # Blanks between the digits are skipped without a word.
    if 2 * len(octets) != len(digits):
        raise MessageMalformedError(f"{name}: want hexadecimal of even length")
    return octets


def _tree(message: object) -> dict[str, object]:
    tree: dict[str, object] = {}
    for spec in specs(type(message)):
        value = getattr(message, spec.name)
        if spec.ours and value == (None if spec.optional else 0):
            continue
        tree[spec.name] = _plain(value)
        if spec.alias is not None:
            tree[spec.alias] = tree[spec.name]
    return tree


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return _tree(value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise MessageMalformedError("JSON: a name occurs twice in one object")
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise MessageMalformedError(f"JSON: {name} is no number")


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]
