"""prpc: which method, in which encoding, and how an error is told (kms.md 1.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dstack.wire.fields import string
from dstack.wire.json_form import from_json
from dstack.wire.protobuf import from_protobuf, to_protobuf

_JSON_FLAGS = ("json", "json=", "json=1", "json=true")
_JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class _JsonError:
    error: str = string(1)


@dataclass(frozen=True, slots=True)
class _ProtobufError:
    message: str = string(1)


def trim_method(name: str, prefix: str) -> str:
    """The bare name of a method: *prefix*, such as `KMS.`, is taken from its front as often as it stands there."""
    begin = 0
    while prefix and name.startswith(prefix, begin):
        begin += len(prefix)
    return name[begin:]


def wants_json(method: str, query: str, content_type: str | None) -> bool:
    """Whether request and answer are JSON rather than protobuf.

    Args:
        method: Of HTTP; GET always means JSON.
        query: The part of the URL after the question mark; the field `json` asks for it.
        content_type: Of the request, if it has one; JSON's asks for it.
    """
    if method == "GET" or any(part in _JSON_FLAGS for part in query.split("&")):
        return True
    return (content_type or "").partition(";")[0].strip().lower() == _JSON_TYPE


def error_json(text: str, **details: str | int) -> str:
    """The JSON body of an error, pretty-printed as upstream does; *details* are ours and follow the text."""
    return json.dumps({"error": text, **details}, indent=2, ensure_ascii=False)


def error_protobuf(text: str) -> bytes:
    """The protobuf body of an error."""
    return to_protobuf(_ProtobufError(text))


def read_error_json(body: bytes) -> str:
    """The text of an error's JSON body.

    Raises:
        MessageMalformedError: The body is not JSON of that form.
    """
    return from_json(_JsonError, body).error


def read_error_protobuf(body: bytes) -> str:
    """The text of an error's protobuf body.

    Raises:
        MessageMalformedError: The body is not protobuf of that form.
    """
    return from_protobuf(_ProtobufError, body).message
