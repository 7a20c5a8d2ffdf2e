"""A chain endpoint that says whatever a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.http_answers import answering

Endpoint = Callable[[bytes], str]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """Starts an endpoint that answers every request with these bytes; gives its URL."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(answering(lambda *_: (200, answer))).url
