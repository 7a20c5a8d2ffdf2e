"""What a guest and a local key provider say to each other: frames of JSON over one connection (guest.md 5.5).

A frame is the length of its content in 4 bytes, big-endian, and the content. Bytes are arrays of decimal numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dstack.errors import MessageMalformedError
from dstack.measurement.strict_json import Members, parse_json

HEAD_SIZE = 4
FRAME_LIMIT = 8 << 20
"""Most bytes of a frame's content, as upstream's provider has it."""
QUOTE_LIMIT = 64 << 10
BOX_LIMIT = 4 << 10


@dataclass(frozen=True, slots=True)
class SealingKeyRequest:
    """The quote of a TD, whose report data begins with the X25519 key that the answer shall be sealed to."""

    quote: bytes


@dataclass(frozen=True, slots=True)
class SealingKeyAnswer:
    """A key in an anonymous box, and the provider's SGX quote over that box."""

    encrypted_key: bytes
    provider_quote: bytes


def frame(content: bytes) -> bytes:
    """Put a content into its frame.

    Raises:
        MessageMalformedError: It is empty, or too long for one.
    """
    _require_size(len(content))
    return len(content).to_bytes(HEAD_SIZE, "big") + content


def framed_size(head: bytes) -> int:
    """How many bytes of content follow the first four bytes of a frame.

    Raises:
        MessageMalformedError: *head* is not four bytes, or says none or too many.
    """
    if len(head) != HEAD_SIZE:
        raise MessageMalformedError(f"frame: want {HEAD_SIZE} bytes of length, got {len(head)}")
    size = int.from_bytes(head, "big")
    _require_size(size)
    return size


def serialise_request(request: SealingKeyRequest) -> bytes:
    """The content of the request's frame."""
    return _serialise({"quote": request.quote})


def parse_request(content: bytes) -> SealingKeyRequest:
    """Read the content of a request's frame.

    Raises:
        MessageMalformedError: It is not of that form, or the quote is too long.
    """
    members = _members(content, "request")
    return SealingKeyRequest(_octets(members, "quote", QUOTE_LIMIT))


def serialise_answer(answer: SealingKeyAnswer) -> bytes:
    """The content of the answer's frame."""
    return _serialise({"encrypted_key": answer.encrypted_key, "provider_quote": answer.provider_quote})


def parse_answer(content: bytes) -> SealingKeyAnswer:
    """Read the content of an answer's frame.

    Raises:
        MessageMalformedError: It is not of that form, or something in it is too long.
    """
    members = _members(content, "answer")
    return SealingKeyAnswer(
        _octets(members, "encrypted_key", BOX_LIMIT), _octets(members, "provider_quote", QUOTE_LIMIT)
    )


def _require_size(size: int) -> None:
    if not 0 < size <= FRAME_LIMIT:
        raise MessageMalformedError(f"frame: want 1 to {FRAME_LIMIT} bytes, got {size}")


def _serialise(members: dict[str, bytes]) -> bytes:
    return json.dumps({name: list(raw) for name, raw in members.items()}, separators=(",", ":")).encode()


def _members(content: bytes, name: str) -> Members:
    what = f"key provider's {name}"
    tree = parse_json(content, what=what, limit=FRAME_LIMIT, error=MessageMalformedError)
    return Members.of(tree, what=what, error=MessageMalformedError)


def _octets(members: Members, name: str, limit: int) -> bytes:
    numbers = members.values.get(name)
    if not isinstance(numbers, list) or len(numbers) > limit:
        got = f"{len(numbers)} of them" if isinstance(numbers, list) else type(numbers).__name__
        raise MessageMalformedError(f"{members.what}: {name}: want an array of at most {limit} bytes, got {got}")
    if not all(type(number) is int and 0 <= number <= 255 for number in numbers):
        raise MessageMalformedError(f"{members.what}: {name}: want numbers from 0 to 255, got something else")
    return bytes(numbers)
