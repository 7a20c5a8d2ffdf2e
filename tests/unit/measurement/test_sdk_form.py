"""The SDKs' form of an app-compose object, compared with the official SDK itself."""

from __future__ import annotations

from typing import Any

import pytest
from dstack_sdk import get_compose_hash

from dstack.errors import ComposeMalformedError
from dstack.measurement.sdk_form import sdk_compose_hash, sdk_compose_text

PLAIN = {"runner": "docker-compose", "name": "a", "docker_compose_file": "services: {}\n"}


@pytest.mark.parametrize(
    "compose",
    [
        PLAIN,
        {**PLAIN, "bash_script": "echo", "pre_launch_script": ""},
        {"runner": "bash", "name": "ü", "docker_compose_file": "x", "bash_script": "echo", "pre_launch_script": "y"},
        {**PLAIN, "extra": {"b": 1, "a": [3, 1, {"z": 1, "y": 2}]}, "none": None},
        {**PLAIN, "docker_config": {"registry": None, "username": "u", "token_key": None}},
        {**PLAIN, "docker_config": {}},
        {**PLAIN, "_hidden": 1, "__x__": "y", "extra": {"_shown": 1}},
        {**PLAIN, "Z": 1, "a\uffff": 2, "a\U00010000": 3, "numbers": [1.0, -0.0, 1e16, 1e-7, 10**30]},
        {**PLAIN, "nothing": float("nan"), "endless": float("inf")},
        {**PLAIN, "other": [float("inf"), float("nan"), {"x": -float("inf")}, 1.5]},
    ],
)
def test_hashes_are_those_of_the_official_sdk(compose: dict[str, Any]) -> None:
    """Plain and normalised, with members that JSON has no word for."""
    # The SDK takes members out of what it is given.
    assert sdk_compose_hash(compose).hex() == get_compose_hash(dict(compose))
    assert sdk_compose_hash(compose, normalize=True).hex() == get_compose_hash(dict(compose), normalize=True)


def test_the_form_is_compact_and_sorted() -> None:
    """And says nothing of members that are null."""
    assert sdk_compose_text({"b": [1], "a": "ü", "c": None}) == '{"a":"ü","b":[1]}'.encode()


def test_text_that_no_utf8_carries_is_refused() -> None:
    """A lone surrogate."""
    with pytest.raises(ComposeMalformedError, match="got a lone surrogate"):
        sdk_compose_text({"name": "\ud800"})
