"""The plaintext of an encrypted environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import MessageMalformedError
from dstack.keys.environment import (
    Variable,
    allowed_variables,
    parse_environment,
    serialise_env_file,
    serialise_environment,
)


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
        (b'{"env": [{"key": "A", "value": "1", "value": "2"}]}', "want no member twice"),
        (b'{"env": [], "env": [{"key": "A", "value": "1"}]}', "want no member twice"),
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


def test_only_allowed_variables_are_given() -> None:
    """Others are left out; of a name that comes twice the last counts."""
    variables = [Variable("A", "1"), Variable("B", "2"), Variable("A", "3"), Variable("_c9", "")]
    assert allowed_variables(variables, ("A", "_c9", "D")) == {"A": "3", "_c9": ""}
    assert allowed_variables(variables, ()) == {}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ([Variable("A", "")] * 1025, "want at most 1024 variables, got 1025"),
        ([Variable("A", ""), Variable("9A", "")], r"env\[1\]: want the name of a variable, got '9A'"),
        ([Variable("A B", "")], "want the name of a variable"),
        ([Variable("A\n", "")], "want the name of a variable"),
        ([Variable("", "")], "want the name of a variable"),
        ([Variable("É", "")], "want the name of a variable"),
        ([Variable("A" * 256, "")], "want the name of a variable"),
        ([Variable("A", "v" * (128 * 1024 + 1))], r"env\[0\]: want at most 131072 bytes"),
        ([Variable("A", "é" * (64 * 1024 + 1))], r"env\[0\]: want at most 131072 bytes"),
        ([Variable("A", "v" * 131072)] * 8, "want at most 1048576 bytes, got 1048584"),
    ],
)
def test_impossible_environments_are_refused(variables: list[Variable], said: str) -> None:
    """Also variables that the app is not to get: nothing of such an environment is trusted."""
    with pytest.raises(MessageMalformedError, match=said):
        allowed_variables(variables, ())


def test_env_files_are_sorted_and_quoted() -> None:
    """What a shell would take apart stands in quotes, with escapes."""
    environment = {"Q": 'a"b$c`d\nnew', "B": "plain=1", "C": "two words", "D": "", "E": "it's", "F": "a\\b"}
    assert serialise_env_file(environment) == (
        'B=plain=1\nC="two words"\nD=\nE="it\'s"\nF="a\\b"\nQ="a\\"b\\$c\\`d\\nnew"\n'
    )
