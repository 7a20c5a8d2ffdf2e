"""The plaintext of an encrypted environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import MessageMalformedError
from dstack.keys.environment import Variable, parse_environment, serialise_environment


@given(st.lists(st.builds(Variable, st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_reading_undoes_writing(variables: list[Variable]) -> None:
    """Any variables survive, in their order."""
    assert parse_environment(serialise_environment(variables)) == tuple(variables)


def test_the_written_form_is_compact() -> None:
    """No blanks, and letters beyond ASCII as they are."""
    assert serialise_environment([Variable("A", "é")]) == '{"env":[{"key":"A","value":"é"}]}'.encode()


def test_the_other_form_is_read() -> None:
    """Blanks, escapes and further members make no difference."""
    plaintext = b'{"env": [{"key": "A", "value": "\\u00e9", "more": 1}], "more": 2}'

    assert parse_environment(plaintext) == (Variable("A", "é"),)


@pytest.mark.parametrize(
    ("plaintext", "named"),
    [
        (b"\xff", "want JSON in UTF-8"),
        (b"{", "want JSON in UTF-8"),
        (b"[" * 100_000, "want JSON in UTF-8"),
        (b"[]", "want an object with a list `env`"),
        (b'{"env": {}}', "want an object with a list `env`"),
        (b'{"env": [1]}', r"env\[0\]: want an object with `key` and `value`"),
        (b'{"env": [{"key": "A", "value": "1"}, {"key": "B"}]}', r"env\[1\]: want an object with `key` and `value`"),
        (b'{"env": [{"key": "A", "value": 1}]}', r"env\[0\]: want two texts"),
        (b'{"env": [{"key": "A", "value": "\\ud800"}]}', r"env\[0\]: want Unicode text, got a lone surrogate"),
    ],
)
def test_other_forms_are_refused(plaintext: bytes, named: str) -> None:
    """The message says where, and never shows a value."""
    with pytest.raises(MessageMalformedError, match=named):
        parse_environment(plaintext)


def test_a_value_is_not_printed() -> None:
    """The value of a variable may be a secret."""
    assert repr(Variable("TOKEN", "s3cret")) == "Variable(key='TOKEN')"
