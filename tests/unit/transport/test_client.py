"""What a caller is told when there is no answer, or a refusal."""

from __future__ import annotations

import pytest

from dstack.errors import KeyReleaseDeniedError, PeerRefusedError, PeerUnavailableError
from dstack.transport.client import PrpcClient
from dstack.wire.kms import AppIdRequest, GetMetaResponse, GetTempCaCertResponse, PublicKeyResponse


@pytest.mark.parametrize("as_json", [True, False])
def test_call_and_answer(plain_url: str, as_json: bool) -> None:
    """A message goes out and a message comes back, in either encoding."""
    with PrpcClient(plain_url) as client:
        answer = client.call("Echo", AppIdRequest(b"id"), PublicKeyResponse, as_json=as_json)

    assert answer == PublicKeyResponse(b"id", b"", 7, b"")


def test_denial_keeps_rule_and_block(plain_url: str) -> None:
    """A refusal by a rule arrives as the error that the service raised."""
    with (
        PrpcClient(plain_url) as client,
        pytest.raises(KeyReleaseDeniedError, match="Boot denied: OS image is not allowed") as denied,
    ):
        client.call("Deny", None, GetMetaResponse)

    assert (denied.value.rule, denied.value.block) == ("OS_IMAGE", 12)


def test_denial_in_protobuf_keeps_its_text(plain_url: str) -> None:
    """Protobuf has no room for the rule; the text arrives."""
    with PrpcClient(plain_url) as client, pytest.raises(PeerRefusedError, match="Boot denied: OS image is not allowed"):
        client.call("Deny", None, GetMetaResponse, as_json=False)


def test_service_that_could_not_ask_is_unavailable(plain_url: str) -> None:
    """What the service could not find out is no refusal for its caller either."""
    with PrpcClient(plain_url) as client, pytest.raises(PeerUnavailableError, match="no endpoint answered"):
        client.call("NoChain", None, GetMetaResponse)


def test_error_without_a_body_of_ours_names_the_status(plain_url: str) -> None:
    """A server that is no such service is quoted by its status."""
    with PrpcClient(plain_url) as client, pytest.raises(PeerRefusedError, match="Defect: status 500"):
        client.call("Defect", None, GetMetaResponse)


def test_answer_of_another_form_is_unavailable(plain_url: str) -> None:
    """An answer that is not the message is not half believed."""
    with (
        PrpcClient(plain_url) as client,
        pytest.raises(PeerUnavailableError, match="Nothing: want GetTempCaCertResponse"),
    ):
        client.call("Nothing", None, GetTempCaCertResponse)


def test_nobody_there_is_unavailable() -> None:
    """A port where nobody listens is no refusal."""
    with PrpcClient("http://127.0.0.1:1/prpc") as client, pytest.raises(PeerUnavailableError, match="Echo: no answer"):
        client.call("Echo", None, PublicKeyResponse)


def test_oversized_answer_is_unavailable(plain_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of an answer is read than the limit."""
    monkeypatch.setattr("dstack.transport.client.ANSWER_LIMIT", 8)

    with (
        PrpcClient(plain_url) as client,
        pytest.raises(PeerUnavailableError, match="an answer of at most 8 bytes"),
    ):
        client.call("Echo", AppIdRequest(b"id"), PublicKeyResponse)
