"""Whatever a message holds, each form gives it back; whatever comes, it is read or refused."""

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import MessageMalformedError
from dstack.wire import guest, kms
from dstack.wire.fields import FieldSpec, Kind, specs
from dstack.wire.message import from_json, from_protobuf, from_query, to_json, to_protobuf

MESSAGES = [
    each
    for module in (kms, guest)
    for _, each in inspect.getmembers(module, inspect.isclass)
    if each.__module__ == module.__name__
]

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.UINT32: st.integers(0, (1 << 32) - 1),
    Kind.UINT64: st.integers(0, (1 << 64) - 1),
    Kind.BOOL: st.booleans(),
    Kind.STRING: _TEXT,
    Kind.BYTES: st.binary(max_size=12),
}


def _field(spec: FieldSpec) -> st.SearchStrategy[Any]:
    value = _message(spec.message) if spec.message else _VALUES[spec.kind]
    if spec.repeated:
        return st.lists(value, max_size=3).map(tuple)
    return st.none() | value if spec.optional else value


def _message(message: type[Any]) -> st.SearchStrategy[Any]:
    return st.builds(message, **{spec.name: _field(spec) for spec in specs(message)})


any_message = st.sampled_from(MESSAGES).flatmap(_message)


@given(any_message)
def test_json_gives_back_what_was_written(message: Any) -> None:
    """For every message that is declared, and any content."""
    assert from_json(type(message), to_json(message)) == message


@given(any_message)
def test_protobuf_gives_back_what_was_written(message: Any) -> None:
    """For every message that is declared, and any content; and the bytes are the same again."""
    raw = to_protobuf(message)

    assert from_protobuf(type(message), raw) == message
    assert to_protobuf(from_protobuf(type(message), raw)) == raw


@given(st.sampled_from(MESSAGES), st.binary(max_size=64))
def test_any_bytes_are_a_message_or_refused(message: type[Any], raw: bytes) -> None:
    """No other error comes out of either reader."""
    for read in (from_json, from_protobuf):
        try:
            assert isinstance(read(message, raw), message)
        except MessageMalformedError:
            continue


@given(st.sampled_from(MESSAGES), st.text(max_size=64))
def test_any_query_is_a_message_or_refused(message: type[Any], query: str) -> None:
    """No other error comes out."""
    try:
        assert isinstance(from_query(message, query), message)
    except MessageMalformedError:
        return


@pytest.mark.parametrize("message", MESSAGES)
def test_numbers_of_fields_are_unique_and_rise(message: type[Any]) -> None:
    """JSON's order of fields is protobuf's, and no number is used twice."""
    numbers = [spec.number for spec in specs(message)]

    assert numbers == sorted(set(numbers))
