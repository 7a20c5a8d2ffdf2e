"""An app's environment: the plaintext that is encrypted (kms.md 8.1), and what a guest makes of it (guest.md 5.5).

The plaintext is `{"env":[{"key":..,"value":..},...]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dstack.errors import MessageMalformedError

MOST_VARIABLES = 1024
LONGEST_NAME = 255
LONGEST_VALUE = 128 << 10
LONGEST_ENVIRONMENT = 1 << 20

_MEMBERS = {"key", "value"}
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_QUOTED = re.compile(r"[ \t|&;<>()$`\\\"'\n]")
_ESCAPES = str.maketrans({"\n": "\\n", '"': '\\"', "$": "\\$", "`": "\\`"})


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
        tree = json.loads(plaintext.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as exc:
        raise MessageMalformedError("environment: want JSON in UTF-8") from exc
    env = tree.get("env") if isinstance(tree, dict) else None
    if not isinstance(env, list):
        raise MessageMalformedError("environment: want an object with a list `env`")
    return tuple(_variable(each, index) for index, each in enumerate(env))


def allowed_variables(variables: Sequence[Variable], allowed: Collection[str]) -> dict[str, str]:
    """The variables that an app may get, by name; others are left out. Of a name that comes twice the last counts.

    Raises:
        MessageMalformedError: There are too many, a name is none, or one or all are too long.
    """
    if len(variables) > MOST_VARIABLES:
        raise MessageMalformedError(f"environment: want at most {MOST_VARIABLES} variables, got {len(variables)}")
    for index, each in enumerate(variables):
        if len(each.key) > LONGEST_NAME or not _NAME.fullmatch(each.key):
            raise MessageMalformedError(f"env[{index}]: want the name of a variable, got {each.key[:40]!r}")
        if len(each.value.encode()) > LONGEST_VALUE:
            raise MessageMalformedError(f"env[{index}]: want at most {LONGEST_VALUE} bytes")
    size = sum(len(each.key) + len(each.value.encode()) for each in variables)
    if size > LONGEST_ENVIRONMENT:
        raise MessageMalformedError(f"environment: want at most {LONGEST_ENVIRONMENT} bytes, got {size}")
    return {each.key: each.value for each in variables if each.key in allowed}


def serialise_env_file(environment: Mapping[str, str]) -> str:
    """The lines of an env file, sorted by name; what a shell would read otherwise stands in double quotes."""
    return "".join(f"{name}={_shown(environment[name])}\n" for name in sorted(environment))


def _shown(value: str) -> str:
    return f'"{value.translate(_ESCAPES)}"' if _QUOTED.search(value) else value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A member that came twice would be read as its first by one reader and as its last by another."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MessageMalformedError("environment: want no member twice")
    return members


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
