"""The plaintext of an encrypted environment: `{"env":[{"key":..,"value":..},...]}` (kms.md 8.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from dstack.errors import MessageMalformedError

_MEMBERS = {"key", "value"}


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of an environment."""

    key: str
    value: str = field(repr=False)


def serialise_environment(variables: Sequence[Variable]) -> bytes:
    """The compact form, as upstream's JavaScript clients write it."""
    env = [{"key": each.key, "value": each.value} for each in variables]
    return json.dumps({"env": env}, separators=(",", ":"), ensure_ascii=False).encode()


def parse_environment(plaintext: bytes) -> tuple[Variable, ...]:
    """Read an environment, whatever its blanks and escapes.

    Does not judge which variables are allowed.

    Raises:
        MessageMalformedError: *plaintext* is not of that form.
    """
    try:
        tree = json.loads(plaintext.decode())
    except (ValueError, RecursionError) as exc:
        raise MessageMalformedError("environment: want JSON in UTF-8") from exc
    env = tree.get("env") if isinstance(tree, dict) else None
    if not isinstance(env, list):
        raise MessageMalformedError("environment: want an object with a list `env`")
    return tuple(_variable(each, index) for index, each in enumerate(env))


def _variable(member: object, index: int) -> Variable:
    if not isinstance(member, dict) or not member.keys() >= _MEMBERS:
        raise MessageMalformedError(f"env[{index}]: want an object with `key` and `value`")
    key, value = member["key"], member["value"]
    if not isinstance(key, str) or not isinstance(value, str):
        raise MessageMalformedError(f"env[{index}]: want two texts")
    try:
        (key + value).encode()
    except UnicodeEncodeError:
        # An escape such as \ud800 makes a text that no file can hold. The cause is left out: it holds the value.
        raise MessageMalformedError(f"env[{index}]: want Unicode text, got a lone surrogate") from None
    return Variable(key, value)
