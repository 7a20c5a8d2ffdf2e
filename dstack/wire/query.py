"""Messages in the query of a URL: `app_id=00&names[0]=a` (kms.md 1.1, the form of serde_qs).

Names of nested fields stand in brackets; the elements of a list are numbered, or have empty brackets.
"""

from __future__ import annotations

import re
from typing import TypeVar

from dstack.errors import MessageMalformedError
from dstack.wire.fields import FieldSpec, Kind, specs
from dstack.wire.json_form import LARGEST, from_tree

Message = TypeVar("Message")

_MOST_PAIRS = 256
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_DECIMAL = re.compile(r"[0-9]{1,20}")


def from_query(message: type[Message], query: str) -> Message:
    """Read a message from the part of a URL after its question mark; empty is all defaults.

    Raises:
        MessageMalformedError: A name occurs twice, or a field is not of its kind; the message names the field.
    """
    fields = {spec.name: spec for spec in specs(message)}
    tree: dict[str, object] = {}
    for name, brackets, value in _pairs(query):
        spec = fields.get(name)
        if spec is not None:
            _place(tree, spec, brackets, value)
    return from_tree(message, tree)


def _pairs(query: str) -> list[tuple[str, str, str]]:
    parts = [part for part in query.split("&") if part]
    if len(parts) > _MOST_PAIRS:
        raise MessageMalformedError(f"query: want at most {_MOST_PAIRS} fields, got {len(parts)}")
    return [_pair(part) for part in parts]


def _pair(part: str) -> tuple[str, str, str]:
    key, _, value = part.partition("=")
    match = _NAME.fullmatch(_unescape(key))
    if match is None:
        raise MessageMalformedError("query: want a name, then brackets or nothing")
    return match[1], match[2], _unescape(value)


def _place(tree: dict[str, object], spec: FieldSpec, brackets: str, text: str) -> None:
    if spec.message is not None:
        raise MessageMalformedError(f"{spec.name}: a message inside a message cannot be given in a query")
    value = _typed(spec, text)
    if not spec.repeated:
        if brackets or spec.name in tree:
            raise MessageMalformedError(f"{spec.name}: want one value")
        tree[spec.name] = value
        return
    elements = tree.setdefault(spec.name, [])
    assert isinstance(elements, list)
    if brackets not in ("[]", f"[{len(elements)}]"):
        raise MessageMalformedError(f"{spec.name}: want element {len(elements)}, got {brackets or 'no brackets'}")
    elements.append(value)


def _typed(spec: FieldSpec, text: str) -> object:
    if spec.kind in LARGEST:
        if _DECIMAL.fullmatch(text) is None:
            raise MessageMalformedError(f"{spec.name}: want a decimal number")
        return int(text)
    if spec.kind is Kind.BOOL:
        if text not in ("true", "false"):
            raise MessageMalformedError(f"{spec.name}: want true or false")
        return text == "true"
    return text


def _unescape(text: str) -> str:
    try:
        return _ESCAPE.sub(_octet, text.replace("+", " ").encode("ascii")).decode()
    except ValueError as exc:
        raise MessageMalformedError("query: want percent-encoded UTF-8") from exc


def _octet(escape: re.Match[bytes]) -> bytes:
    if escape[1] is None:
        raise MessageMalformedError("query: want two hexadecimal digits after %")
    return bytes.fromhex(escape[1].decode("ascii"))
