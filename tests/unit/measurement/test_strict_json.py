"""JSON that two readers could understand in two ways is refused."""

import pytest

from dstack.errors import MeasurementMalformedError
from dstack.measurement.strict_json import Members, parse_json


def read(raw: str | bytes) -> object:
    """Parse at most 100 bytes."""
    return parse_json(raw, what="note", limit=100, error=MeasurementMalformedError)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ('{"a":1,"a":2}', "note: not JSON: member 'a' appears twice"),
        ('{"x":[{"a":1,"\\u0061":1}]}', "member 'a' appears twice"),
        ("[NaN]", "note: not JSON: NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1] 2", "note: not JSON: Extra data"),
        ("", "note: not JSON"),
        (b"\xff", "note: want UTF-8"),
        (b"\xef\xbb\xbf[]", "note: not JSON"),
        ('{"a":1}'.encode("utf-16"), "note: want UTF-8"),
        ('["\\ud800"]', "a lone surrogate"),
        ('["\ud800"]', "a lone surrogate"),
        ("[" * 99, "note: not JSON"),
        (" " * 101, "note: want at most 100 bytes, got 101"),
        ('"' + "é" * 50 + '"', "note: want at most 100 bytes, got 102"),
    ],
)
def test_ambiguous_or_broken_text_is_refused(raw: str | bytes, message: str) -> None:
    """The sentence names the text and what is wrong with it."""
    with pytest.raises(MeasurementMalformedError, match=message):
        read(raw)


@pytest.mark.parametrize("opening", ["[", '{"a":', '["]",'])
def test_deep_nesting_is_refused(opening: str) -> None:
    """65 levels are malformed, however far the process has raised Python's recursion limit."""
    with pytest.raises(MeasurementMalformedError, match="note: not JSON: nested more than 64 deep"):
        parse_json(opening * 200_000, what="note", limit=2_000_000, error=MeasurementMalformedError)


def test_brackets_in_strings_do_not_nest() -> None:
    """64 levels are read, and brackets inside strings, behind escapes too, are text."""
    text = "[" * 64 + '"\\"[[[[{{{{"' + "]" * 64

    assert parse_json(text, what="note", limit=1000, error=MeasurementMalformedError)


def test_an_unfinished_string_is_refused_quickly() -> None:
    """A megabyte of escaped quotes without an end takes linear time."""
    with pytest.raises(MeasurementMalformedError, match="note: not JSON: Unterminated string"):
        parse_json('"' + '\\"' * 500_000, what="note", limit=2_000_000, error=MeasurementMalformedError)


@pytest.mark.parametrize("value", ["[],", "{},", '"ab",', "1.5,"])
def test_too_many_values_are_refused(value: str) -> None:
    """A text of small values, which would take thirty times its size in memory, is refused before any is made."""
    text = "[" + value * 500_000 + "1]"

    with pytest.raises(MeasurementMalformedError, match="note: not JSON: want at most 500000 commas and opening"):
        parse_json(text, what="note", limit=5_000_000, error=MeasurementMalformedError)


def test_as_many_values_as_may_be_are_read() -> None:
    """The bound itself is allowed."""
    text = "[" + "1," * 499_999 + "1]"

    assert parse_json(text, what="note", limit=5_000_000, error=MeasurementMalformedError) == [1] * 500_000


def test_a_number_of_many_digits_is_refused() -> None:
    """An integer that takes quadratic time to read is malformed."""
    with pytest.raises(MeasurementMalformedError, match="note: not JSON: Exceeds the limit"):
        parse_json("9" * 5000, what="note", limit=5000, error=MeasurementMalformedError)


def test_a_surrogate_pair_is_text() -> None:
    """An escaped character beyond the basic plane is read."""
    assert read('["\\ud83d\\ude00"]') == ["😀"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.text("absent"), "note: member 'absent' is missing"),
        (lambda m: m.text("number"), "note: number: want a string, got a number"),
        (lambda m: m.text("nothing", "x"), "note: nothing: want a string, got null"),
        (lambda m: m.flag("number"), "note: number: want true or false, got a number"),
        (lambda m: m.integer("flag", maximum=1), "note: flag: want an integer, got a boolean"),
        (lambda m: m.integer("number", maximum=6), "note: number: want 0 to 6, got 7"),
        (lambda m: m.texts("mixed"), "note: mixed: want an array of strings, got a number in it"),
        (lambda m: m.hexadecimal("text"), "note: text: want hexadecimal"),
        (lambda m: m.refuse_others(frozenset({"text"})), "note: unknown member 'flag'"),
    ],
)
def test_a_member_of_another_type_is_refused(call: object, message: str) -> None:
    """Each accessor takes its type only: a boolean is no integer, null is no string."""
    members = Members.of(
        {"text": "hey", "number": 7, "flag": True, "nothing": None, "mixed": ["a", 1]},
        what="note",
        error=MeasurementMalformedError,
    )

    with pytest.raises(MeasurementMalformedError, match=message):
        call(members)  # type: ignore[operator]


def test_an_array_is_no_object() -> None:
    """Members are of an object."""
    with pytest.raises(MeasurementMalformedError, match="note: want a JSON object, got an array"):
        Members.of([], what="note", error=MeasurementMalformedError)
