"""Errors of web3 in our words: of an endpoint's URL nothing is shown but what may be."""

from __future__ import annotations

import pytest
from web3 import HTTPProvider, Web3

from dstack.chain.tx import translated
from dstack.errors import ChainUnavailableError
from tests.http_answers import answering

CREDENTIAL = "v2/0123456789abcdef"


def said_of(url: str) -> str:
    """What is said where the endpoint at *url* cannot be asked."""
    with pytest.raises(ChainUnavailableError) as raised, translated():
        assert Web3(HTTPProvider(url, exception_retry_configuration=None)).eth.block_number
    return str(raised.value)


def test_a_silent_endpoint_shows_no_credential() -> None:
    """Nobody listens there."""
    assert said_of(f"http://127.0.0.1:1/{CREDENTIAL}") == "chain: ConnectionError"


def test_an_endpoint_that_refuses_shows_no_credential() -> None:
    """It answers 401; the number helps whoever mistyped the credential."""
    with answering(lambda *_: (401, b"{}")) as endpoint:
        assert said_of(f"{endpoint.url}/{CREDENTIAL}") == "chain: HTTPError 401"
        assert [path for _, path, _ in endpoint.asked] == [f"/{CREDENTIAL}"]
