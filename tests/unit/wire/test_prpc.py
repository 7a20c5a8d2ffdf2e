"""What surrounds a message."""

import time

import pytest

from dstack.errors import MessageMalformedError
from dstack.wire import prpc


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("GetMeta", "GetMeta"),
        ("KMS.GetMeta", "GetMeta"),
        ("KMS.KMS.GetMeta", "GetMeta"),
        ("Admin.GetMeta", "Admin.GetMeta"),
        ("KMS.", ""),
        ("kms.GetMeta", "kms.GetMeta"),
    ],
)
def test_a_prefix_is_taken_off_as_often_as_it_stands_there(name: str, bare: str) -> None:
    """Only that prefix, only in front."""
    assert prpc.trim_method(name, "KMS.") == bare


def test_many_prefixes_take_no_time() -> None:
    """A name is trimmed in a time that grows with its length alone: it is a stranger's, and everybody waits."""
    began = time.perf_counter()

    assert prpc.trim_method("KMS." * 200_000 + "GetMeta", "KMS.") == "GetMeta"
    assert time.perf_counter() - began < 1


def test_no_prefix_takes_nothing_off() -> None:
    """A service without a prefix has bare names."""
    assert prpc.trim_method("GetMeta", "") == "GetMeta"


@pytest.mark.parametrize(
    ("method", "query", "content_type", "json"),
    [
        ("GET", "", None, True),
        ("GET", "json=false", "application/octet-stream", True),
        ("POST", "", None, False),
        ("POST", "json", None, True),
        ("POST", "json=", None, True),
        ("POST", "json=1", None, True),
        ("POST", "a=b&json=true", None, True),
        ("POST", "json=false", None, False),
        ("POST", "jsonx", None, False),
        ("POST", "", "application/json", True),
        ("POST", "", "Application/JSON; charset=utf-8", True),
        ("POST", "json=0", "application/json", True),
        ("POST", "", "application/octet-stream", False),
        ("POST", "", "text/json", False),
    ],
)
def test_who_gets_json(method: str, query: str, content_type: str | None, json: bool) -> None:
    """GET, the field `json`, or JSON's content type; else protobuf."""
    assert prpc.wants_json(method, query, content_type) is json


def test_errors_are_told_as_upstream_tells_them() -> None:
    """Pretty JSON with one member, or protobuf with one field."""
    assert prpc.error_json("Service not found: Nope") == '{\n  "error": "Service not found: Nope"\n}'
    assert prpc.error_protobuf("no").hex() == "0a026e6f"


def test_details_follow_the_text() -> None:
    """What we add does not disturb who reads the text."""
    body = prpc.error_json("no", kind="refused", step=3)

    assert body == '{\n  "error": "no",\n  "kind": "refused",\n  "step": 3\n}'
    assert prpc.read_error_json(body.encode()) == "no"


@pytest.mark.parametrize("text", ["", 'é \u2028 "quoted"\n'])
def test_an_errors_text_survives(text: str) -> None:
    """In both encodings."""
    assert prpc.read_error_json(prpc.error_json(text).encode()) == text
    assert prpc.read_error_protobuf(prpc.error_protobuf(text)) == text


def test_an_error_of_another_form_is_malformed() -> None:
    """A proxy's HTML page is not an answer of the service."""
    with pytest.raises(MessageMalformedError, match="not JSON"):
        prpc.read_error_json(b"<html>")
    with pytest.raises(MessageMalformedError, match="not protobuf"):
        prpc.read_error_protobuf(b"<html>")
