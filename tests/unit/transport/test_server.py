"""prpc over HTTP, on real sockets (kms.md section 1.1)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from dstack.transport import server
from dstack.transport.listener import Listener
from dstack.transport.server import CallContext, Method, Observation, prpc_app
from dstack.wire.kms import AppIdRequest, PublicKeyResponse
from dstack.wire.message import from_protobuf, to_protobuf
from dstack.wire.prpc import read_error_protobuf

APP_ID = bytes(range(20))
ECHO_JSON = f'{{"public_key":"{APP_ID.hex()}","signature":"","timestamp":7,"signature_v1":""}}'


def test_post_with_json_query_needs_no_content_type(plain_url: str) -> None:
    """A JSON body is read because the query says so; upstream's clients send no Content-Type."""
    answer = httpx.post(f"{plain_url}/Echo?json", content=b'{"app_id":"%s"}' % APP_ID.hex().encode())

    assert "content-type" not in answer.request.headers
    assert (answer.status_code, answer.text) == (200, ECHO_JSON)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-app-version"] == "v1"


def test_post_with_json_content_type_is_json(plain_url: str) -> None:
    """Content-Type alone makes a call JSON."""
    answer = httpx.post(f"{plain_url}/Echo", json={"app_id": "0x" + APP_ID.hex()})

    assert (answer.status_code, answer.text) == (200, ECHO_JSON)


def test_post_without_any_sign_of_json_is_protobuf(plain_url: str) -> None:
    """Otherwise request and answer are protobuf."""
    answer = httpx.post(f"{plain_url}/Echo", content=to_protobuf(AppIdRequest(APP_ID)))

    assert answer.headers["content-type"] == "application/octet-stream"
    assert from_protobuf(PublicKeyResponse, answer.content) == PublicKeyResponse(APP_ID, b"", 7, b"")


def test_get_takes_its_arguments_from_the_query(plain_url: str) -> None:
    """GET is always JSON, and fields that nobody knows are ignored."""
    answer = httpx.get(f"{plain_url}/Echo", params={"app_id": APP_ID.hex(), "json": "", "other": "1"})

    assert (answer.status_code, answer.text) == (200, ECHO_JSON)


@pytest.mark.parametrize("name", ["Echo", "KMS.Echo", "KMS.KMS.Echo"])
def test_prefix_is_trimmed_as_often_as_it_occurs(plain_url: str, name: str) -> None:
    """`Echo`, `KMS.Echo` and `KMS.KMS.Echo` are one method."""
    assert httpx.get(f"{plain_url}/{name}?app_id=").status_code == 200


@pytest.mark.parametrize("name", ["KMS.GetKmsKey", "Onboard.Echo", "echo"])
def test_unknown_method_is_named_in_the_error(plain_url: str, name: str) -> None:
    """A method that is not in the table answers 400 with its name after trimming, as upstream spells it."""
    answer = httpx.get(f"{plain_url}/{name}")

    assert answer.status_code == 400
    assert answer.text.startswith(f'{{\n  "error": "Service not found: {name.removeprefix("KMS.")}",\n')


def test_empty_body_is_the_default_request(plain_url: str) -> None:
    """No body at all stands for a message whose every field has its default."""
    assert httpx.post(f"{plain_url}/Echo?json").json()["public_key"] == ""
    assert httpx.post(f"{plain_url}/Echo").status_code == 200


@pytest.mark.parametrize(("query", "body"), [("?json", b"null"), ("", b"")])
def test_empty_answer_and_ignored_argument(plain_url: str, query: str, body: bytes) -> None:
    """A method without argument ignores the body; its empty answer is `null` in JSON and no bytes in protobuf."""
    answer = httpx.post(f"{plain_url}/Nothing{query}", content=b"{ not a message")

    assert (answer.status_code, answer.content) == (200, body)


def test_denial_names_rule_and_block(plain_url: str) -> None:
    """The body keeps upstream's text under `error`, and adds which rule decided at which block."""
    answer = httpx.post(f"{plain_url}/Deny?json", content=b"null")

    assert answer.status_code == 400
    assert answer.json() == {
        "error": "App not allowed: Boot denied: OS image is not allowed",
        "kind": "refused",
        "rule": "OS_IMAGE",
        "block": 12,
    }


def test_error_in_protobuf_has_the_same_text(plain_url: str) -> None:
    """A protobuf caller gets the text as field 1."""
    answer = httpx.post(f"{plain_url}/Deny")

    assert answer.status_code == 400
    assert read_error_protobuf(answer.content) == "App not allowed: Boot denied: OS image is not allowed"


def test_unavailable_is_neither_yes_nor_no(plain_url: str) -> None:
    """An answer that could not be found out is an error of its own kind, without a rule."""
    answer = httpx.post(f"{plain_url}/NoChain?json")

    assert (answer.status_code, answer.json()) == (400, {"error": "no endpoint answered", "kind": "unavailable"})


@pytest.mark.parametrize("body", [b"{", b'{"app_id": 5}', b'{"app_id": "abc"}', b"[]"])
def test_malformed_json_is_an_input_error(plain_url: str, body: bytes) -> None:
    """A body that is not the message answers 400 and says that the input was at fault."""
    answer = httpx.post(f"{plain_url}/Echo?json", content=body)

    assert (answer.status_code, answer.json()["kind"]) == (400, "input")


def test_defect_answers_500_without_details(plain_url: str) -> None:
    """An exception that is not ours is not told to the caller."""
    answer = httpx.post(f"{plain_url}/Defect?json")

    assert (answer.status_code, "secret" in answer.text) == (500, False)


def test_path_outside_the_service_is_not_found(plain_url: str) -> None:
    """What is no method path is a 404 in the form of our errors; the framework's documentation pages are off."""
    root = plain_url.removesuffix("/prpc")
    answers = [httpx.get(root + path) for path in ("/docs", "/openapi.json", "/")]

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert answers[0].json() == {"error": "path: want one that is served here, got '/docs'", "kind": "input"}


def test_a_slash_at_the_end_is_another_path(plain_url: str) -> None:
    """It is not found; nobody is sent elsewhere, by a name that the caller chose."""
    answer = httpx.post(f"{plain_url}/Echo/?json", content=b"{}", headers={"Host": "elsewhere.example"})

    assert (answer.status_code, "location" in answer.headers) == (404, False)


@pytest.mark.parametrize("verb", ["HEAD", "PUT", "DELETE", "OPTIONS"])
def test_methods_are_called_with_get_or_post(plain_url: str, verb: str) -> None:
    """Any other verb of HTTP is a 405 in the form of our errors, and calls nothing."""
    answer = httpx.request(verb, f"{plain_url}/Defect?json")

    allowed = answer.headers["allow"]
    assert (answer.status_code, set(allowed.split(", "))) == (405, {"GET", "POST"})
    if verb != "HEAD":
        assert answer.json() == {"error": f"method: want {allowed}, got {verb!r}", "kind": "input"}


def test_oversized_body_is_refused(plain_url: str) -> None:
    """More than 10 MiB answers 400 with a text that ends as upstream's does."""
    answer = httpx.post(f"{plain_url}/Echo?json", content=b" " * (server.BODY_LIMIT + 1), timeout=30)

    assert answer.status_code == 400
    assert answer.json()["error"].endswith("payload too large")


def test_body_that_does_not_come_is_given_up(plain_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that announces a body and sends half of it gets an error after a while, not a thread for ever."""
    monkeypatch.setattr(server, "BODY_SECONDS", 0.2)
    host, port = plain_url.removeprefix("http://").removesuffix("/prpc").split(":")

    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /prpc/Echo?json HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 400 ")


def wait_until(holds: Callable[[], bool]) -> None:
    """Return when it does; fail after a while."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_calls_of_those_who_left_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls and hangs up leaves his call behind; beyond so many of them no more are taken."""
    monkeypatch.setattr(server, "CALLS_AT_ONCE", 1)
    monkeypatch.setattr(server, "CALLS_UNDER_WAY", 3)
    begun, go_on = threading.Event(), threading.Event()

    def slow(_request: None, _context: CallContext) -> None:
        begun.set()
        go_on.wait(30)

    app = prpc_app({"Slow": Method(None, slow), "Fast": Method(None, lambda _request, _context: None)}, prefix="")
    with Listener(app).running() as listener:
        url = f"http://127.0.0.1:{listener.port}/prpc"
        try:
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", listener.port)) as left:
                    left.sendall(b"GET /prpc/Slow HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert begun.wait(30)
            wait_until(lambda: httpx.get(f"{url}/Fast").status_code == 503)
            answer = httpx.get(f"{url}/Fast")
        finally:
            go_on.set()
        wait_until(lambda: httpx.get(f"{url}/Fast").status_code == 200)

    assert answer.json() == {"error": "calls: want at most 3 at once, got more", "kind": "unavailable"}


def test_client_that_hangs_up_is_no_defect_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Half a body and the end of the connection are an input error: counted as one, and no trace in the log."""
    seen: list[Observation] = []
    with Listener(prpc_app({}, prefix="", observe=seen.append)).running() as listener:
        with socket.create_connection(("127.0.0.1", listener.port)) as connection:
            connection.sendall(b"POST /prpc/Any HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        wait_until(lambda: bool(seen))

    assert [each.status for each in seen] == [400]
    assert caplog.records == []
