"""What an endpoint does not answer, or answers out of form, is neither yes nor no."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from dstack.chain.client import CallRevertedError, ChainClient, parse_address, printable
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy import BlockRef
from dstack.values import Digest32

ADDRESS = "0x" + "11" * 20
BLOCK = BlockRef(7, Digest32(b"\x07" * 32), 1_800_000_000)

Endpoint = Callable[[bytes], str]


def result(value: object) -> bytes:
    """A JSON-RPC answer."""
    return json.dumps({"jsonrpc": "2.0", "id": 0, "result": value}).encode()


def error(**members: object) -> bytes:
    """A JSON-RPC error."""
    return json.dumps({"jsonrpc": "2.0", "id": 0, "error": members}).encode()


def test_a_block_is_read_whole(endpoint: Endpoint) -> None:
    """Number, hash and time come from one answer."""
    answer = {"number": "0x7", "hash": "0x" + "07" * 32, "timestamp": hex(1_800_000_000), "miner": ADDRESS}

    assert ChainClient(endpoint(result(answer))).block() == BLOCK


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "JSONDecodeError"),
        (b"<html>bad gateway</html>", "JSONDecodeError"),
        (b"[]", "want a JSON-RPC answer, got something else"),
        (b'{"jsonrpc":"2.0","id":0}', "want a JSON-RPC answer, got something else"),
        (b'{"error":"down"}', "want a JSON-RPC answer, got something else"),
        (error(code=-32000, message="header not found\n\x1b[2J"), r"header not found\?\?\[2J$"),
        (error(code=3, message="execution reverted", data="0x"), "execution reverted"),
        (result(None), "has no finalized block"),
        (result("0x7"), "has no finalized block"),
        (result({"number": 7, "hash": "0x" + "07" * 32, "timestamp": "0x1"}), "block number: want a hexadecimal"),
        (result({"number": "0x7", "hash": "0x" + "07" * 32}), "block time: want a hexadecimal number, got None"),
        (result({"number": "0x7", "hash": "0x0707", "timestamp": "0x1"}), "block hash: want 32 bytes, got 2"),
        (result({"number": "0x7", "hash": "seven", "timestamp": "0x1"}), "block hash: want hexadecimal"),
        (result({"number": "0x7", "timestamp": "0x1"}), "block hash: want hexadecimal"),
    ],
)
def test_a_block_out_of_form_is_no_block(endpoint: Endpoint, answer: bytes, words: str) -> None:
    """Each malformed answer becomes one sentence about what was wanted, safe to log."""
    with pytest.raises(ChainUnavailableError, match=words):
        ChainClient(endpoint(answer)).block()


def test_a_revert_carries_its_data(endpoint: Endpoint) -> None:
    """A contract that refused is told apart from an endpoint that failed."""
    client = ChainClient(endpoint(error(code=3, message="execution reverted", data="0x1234")))

    with pytest.raises(CallRevertedError, match="the contract reverted") as caught:
        client.call(ADDRESS, b"", BLOCK)
    assert caught.value.data == b"\x12\x34"


def test_a_revert_without_data_is_a_revert(endpoint: Endpoint) -> None:
    """Older nodes give words only."""
    client = ChainClient(endpoint(error(code=-32000, message="execution reverted")))

    with pytest.raises(CallRevertedError, match="the contract reverted"):
        client.call(ADDRESS, b"", BLOCK)


@pytest.mark.parametrize(
    "answer",
    [
        error(code=-32000, message="out of gas"),
        error(code=-32001, message="Resource not found"),
        error(code=3, message="execution reverted", data="0xzz"),
        result(None),
        result({"data": "0x"}),
        result("0x123"),
    ],
)
def test_a_call_out_of_form_is_no_answer(endpoint: Endpoint, answer: bytes) -> None:
    """A lost block, an exhausted gas limit or malformed data is not the contract's word."""
    with pytest.raises(ChainUnavailableError, match=r"^http://127\.0\.0\.1:"):
        ChainClient(endpoint(answer)).call(ADDRESS, b"", BLOCK)


@pytest.mark.parametrize("answer", [result(None), result([7]), result([{"topics": "0x"}]), result([{"topics": [1]}])])
def test_events_out_of_form_are_no_events(endpoint: Endpoint, answer: bytes) -> None:
    """A list that holds anything but events is refused."""
    with pytest.raises(ChainUnavailableError, match=r"want|event topic"):
        ChainClient(endpoint(answer)).logs(ADDRESS, bytes(32), since=0, until=BLOCK)


def test_an_endpoint_that_is_not_there_is_unavailable() -> None:
    """A refused connection names the host and the cause, and not the credential in the URL."""
    client = ChainClient("http://someone:hunter2@127.0.0.1:9/v3/secret-token?key=secret")

    with pytest.raises(ChainUnavailableError, match=r"^http://127\.0\.0\.1:9: eth_chainId: ConnectionError$"):
        _ = client.chain_id
    assert repr(client) == "ChainClient('http://127.0.0.1:9', block_tag='finalized')"


def test_an_endpoint_that_stays_silent_is_unavailable() -> None:
    """The timeout ends the wait; there is no second try."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = ChainClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)

        with pytest.raises(ChainUnavailableError, match="eth_chainId: ReadTimeout"):
            _ = client.chain_id


@pytest.mark.parametrize("url", ["", "localhost:8545", "ftp://host", "http://", "ws://host:1", "http://host:port"])
def test_a_url_must_be_http(url: str) -> None:
    """Other schemes and half URLs are refused without repeating them."""
    with pytest.raises(
        ConfigError, match=r"^RPC URL: want an http or https URL with a host, and no port or one from 1 to 65535$"
    ):
        ChainClient(url)


@pytest.mark.parametrize("tag", ["", "pending", "earliest", "0x10"])
def test_a_block_tag_must_be_settled(tag: str) -> None:
    """Nothing may rest on a pending block, or on one fixed number."""
    with pytest.raises(ConfigError, match="block tag: want one of finalized, safe, latest, got"):
        ChainClient("http://localhost", block_tag=tag)


@pytest.mark.parametrize(
    "text", ["", "0x", "11" * 20, "0x" + "11" * 19, "0x" + "11" * 21, "0x" + "g1" * 20, "0x" + "1١" * 20]
)
def test_an_address_has_20_bytes_of_hexadecimal(text: str) -> None:
    """Anything else is refused, and the error says what it was for."""
    with pytest.raises(ConfigError, match="KmsAuth: want 0x and 40 hexadecimal digits, got"):
        parse_address(text, what="KmsAuth")


def test_the_zero_address_is_no_address() -> None:
    """An unset setting does not pass as a contract."""
    with pytest.raises(ConfigError, match="KmsAuth: want an address, got the zero address"):
        parse_address("0x" + "00" * 20, what="KmsAuth")


def test_foreign_text_is_safe_to_log() -> None:
    """One line, bounded, without control characters; the rest is left alone."""
    assert printable("a\nb\x1b[0m\u202eñ" + "x" * 300) == ("a?b?[0m?ñ" + "x" * 300)[:200]
