"""How a message is declared: a frozen dataclass whose fields carry their protobuf number and kind.

    @dataclass(frozen=True, slots=True)
    class GetAppKeyRequest:
        api_version: int = uint32(1)
        vm_config: str = string(2)

From this one declaration follow the JSON, the protobuf and the query form. Every field has protobuf's default, so
every message can be made of nothing.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

_KEY = "dstack.wire"


class Kind(enum.Enum):
    """The kinds of protobuf fields that prpc's messages use."""

    UINT32 = "uint32"
    UINT64 = "uint64"
    BOOL = "bool"
    STRING = "string"
    BYTES = "bytes"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a message.

    Attributes:
        name: In JSON and in Python.
        number: In protobuf.
        kind: What it holds, or what each element holds.
        repeated: It holds a tuple.
        optional: It may be None, which is not the same as the default.
        message: The class of a sub-message.
        alias: A second JSON name, written as well and read in place of the first.
        ours: Not upstream's: left out of JSON at its default, so that answers without it are upstream's to the byte.
    """

    name: str
    number: int
    kind: Kind
    repeated: bool = False
    optional: bool = False
    message: type[Any] | None = None
    alias: str | None = None
    ours: bool = False


def uint32(number: int) -> Any:
    """An unsigned number of 32 bits."""
    return _declare(0, number=number, kind=Kind.UINT32)


def uint64(number: int, *, optional: bool = False, ours: bool = False) -> Any:
    """An unsigned number of 64 bits."""
    return _declare(None if optional else 0, number=number, kind=Kind.UINT64, optional=optional, ours=ours)


def boolean(number: int) -> Any:
    """True or false."""
    return _declare(False, number=number, kind=Kind.BOOL)


def string(number: int, *, optional: bool = False, alias: str | None = None) -> Any:
    """Text."""
    return _declare(None if optional else "", number=number, kind=Kind.STRING, optional=optional, alias=alias)


def octets(number: int) -> Any:
    """Bytes; hexadecimal in JSON."""
    return _declare(b"", number=number, kind=Kind.BYTES)


def strings(number: int) -> Any:
    """A tuple of texts."""
    return _declare((), number=number, kind=Kind.STRING, repeated=True)


def many_octets(number: int) -> Any:
    """A tuple of bytes."""
    return _declare((), number=number, kind=Kind.BYTES, repeated=True)


def one(message: type[Any], number: int, *, ours: bool = False) -> Any:
    """A sub-message, or None."""
    return _declare(None, number=number, kind=Kind.MESSAGE, optional=True, message=message, ours=ours)


def many(message: type[Any], number: int) -> Any:
    """A tuple of sub-messages."""
    return _declare((), number=number, kind=Kind.MESSAGE, repeated=True, message=message)


# Classes are declared, never made: there are as many as modules of messages declare.
_SPECS: dict[type[Any], tuple[FieldSpec, ...]] = {}


def specs(message: type[Any]) -> tuple[FieldSpec, ...]:
    """The fields of a message class, in the order of their declaration."""
    known = _SPECS.get(message)
    if known is None:
        declared = dataclasses.fields(message)
        known = _SPECS[message] = tuple(FieldSpec(name=each.name, **each.metadata[_KEY]) for each in declared)
    return known


def _declare(default: object, **spec: object) -> Any:
    return dataclasses.field(default=default, metadata={_KEY: spec})
