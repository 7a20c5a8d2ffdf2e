"""Calls as an operator makes them with curl: JSON in, JSON or an error object out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from dstack.devnet.programs import Program
from dstack.errors import PeerUnavailableError, ToolUnavailableError

_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status and body; `body` is the decoded JSON object, empty for an empty or plain answer."""

    status: int
    body: dict[str, Any]
    text: str
    content: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the status says success."""
        return self.status == httpx.codes.OK


def call(url: str, body: dict[str, Any] | str | bytes | None = None, *, verify: bool = True) -> HttpAnswer:
    """POST *body* as JSON, or GET without one.

    Args:
        url: Where.
        body: An object, or text or bytes that are sent as they are.
        verify: False as in `curl -k`, for a server whose certificate is checked by its evidence instead.

    Raises:
        PeerUnavailableError: Nobody answered.
    """
    try:
        with httpx.Client(verify=verify, timeout=30.0, trust_env=False) as http:
            if isinstance(body, str | bytes):
                response = http.post(url, content=body)
            else:
                response = http.get(url) if body is None else http.post(url, json=body)
    except httpx.HTTPError as exc:
        raise PeerUnavailableError(f"{url}: no answer: {exc or type(exc).__name__}") from exc
    try:
        decoded = response.json()
    except ValueError:
        decoded = {}
    return HttpAnswer(
        response.status_code, decoded if isinstance(decoded, dict) else {}, response.text, response.content
    )


def wait_for(url: str, program: Program, *, seconds: float, verify: bool = True) -> None:
    """Wait until *url*, which *program* serves, answers anything.

    Raises:
        ToolUnavailableError: The program ended, or nothing answered in *seconds*.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            call(url, verify=verify)
        except PeerUnavailableError as exc:
            if not program.running():
                raise ToolUnavailableError(f"{program.name}: ended early; its log is {program.log}") from exc
            if time.monotonic() > deadline:
                raise ToolUnavailableError(f"{url}: want an answer within {seconds:.0f} s, got none") from exc
            time.sleep(_PAUSE_SECONDS)
        else:
            return
