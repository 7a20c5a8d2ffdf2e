"""One JSON-RPC endpoint, asked several things in one request, with a deadline and a size limit.

Unlike `ChainClient` it is meant to be one of several: what went wrong is told apart by a word, so that an operator sees
which endpoint hangs, which is dead and which talks nonsense. Its URL may hold a credential, so only its host is shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from dstack.chain.bounded_http import BoundedClient, EndpointError
from dstack.chain.client import printable, shown_endpoint

ANSWER_LIMIT = 1 << 20
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """A method of JSON-RPC and its parameters."""

    method: str
    parameters: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """The endpoint's own error, instead of a result."""

    code: object
    message: str
    data: object


class RpcEndpoint:
    """Asks one endpoint; may be used by several threads at once."""

    def __init__(self, url: str, *, seconds: float) -> None:
        """Take the settings; nothing is asked yet.

        Args:
            url: http or https.
            seconds: How long one request may take, all in all.

        Raises:
            ConfigError: The URL is not of its form.
        """
        self.name = shown_endpoint(url)
        self._url = url
        self._client = BoundedClient(seconds=seconds, limit=ANSWER_LIMIT, connections=CONNECTIONS)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def batch(self, requests: Sequence[Request]) -> list[object]:
        """The result of each request, or its `Failure`, in order.

        Raises:
            EndpointError: It did not answer in time, or not with one answer for each request.
        """
        asked = [
            {"jsonrpc": "2.0", "id": number, "method": request.method, "params": list(request.parameters)}
            for number, request in enumerate(requests)
        ]
        answers = self._parse(self._post(json.dumps(asked, separators=(",", ":")).encode()))
        if not isinstance(answers, list):
            raise EndpointError("malformed", "want a list of JSON-RPC answers, got something else")
        by_number = {
            answer["id"]: answer for answer in answers if isinstance(answer, dict) and type(answer.get("id")) is int
        }
        if len(answers) != len(asked) or set(by_number) != set(range(len(asked))):
            raise EndpointError("malformed", f"want {len(asked)} JSON-RPC answers, got {len(answers)}")
        return [_result(by_number[number]) for number in range(len(asked))]

    def _post(self, body: bytes) -> bytes:
        reply = self._client.exchange("POST", self._url, body)
        if reply.status != HTTPStatus.OK:
            raise EndpointError("refusing", f"answers with HTTP status {reply.status}")
        return reply.body

    def _parse(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as exc:
            raise EndpointError("malformed", "want JSON, got something else") from exc


def _result(answer: dict[str, Any]) -> object:
    error = answer.get("error")
    if isinstance(error, dict):
        return Failure(error.get("code"), printable(str(error.get("message"))), error.get("data"))
    if error is not None or "result" not in answer:
        raise EndpointError("malformed", "want a result or an error, got neither")
    return answer["result"]
