"""One HTTP exchange with somebody who is not trusted to keep it short: a deadline for all of it, and a size limit."""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx

from dstack.errors import ChainUnavailableError


class EndpointError(ChainUnavailableError):
    """No answer that can be used came from this endpoint.

    Attributes:
        fault: One word: `dead`, `silent`, `malformed` or `refusing`.
    """

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    body: bytes


class BoundedClient:
    """Asks one URL and what lies under it; may be used by several threads at once. Follows nothing elsewhere."""

    def __init__(self, *, seconds: float, limit: int, connections: int, user_agent: str | None = None) -> None:
        """Take the settings.

        Args:
            seconds: How long one exchange may take, all in all.
            limit: How many bytes an answer may have.
            connections: How many to keep at most.
            user_agent: Said of us; None for the library's word.
        """
        self.seconds = seconds
        self._limit = limit
        self._client = httpx.Client(
            timeout=seconds,
            trust_env=False,
            follow_redirects=False,
            # What is packed could be a thousand times as long when it is unpacked.
            headers={"accept-encoding": "identity"} | ({} if user_agent is None else {"user-agent": user_agent}),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def exchange(self, method: str, url: str, json_body: bytes | None = None) -> Reply:
        """Ask once.

        Raises:
            EndpointError: No whole answer came in time, or too long a one.
        """
        end = time.monotonic() + self.seconds
        headers = {} if json_body is None else {"content-type": "application/json"}
        try:
            with self._client.stream(method, url, content=json_body, headers=headers) as response:
                return Reply(response.status_code, self._body(response, end))
        except httpx.TimeoutException as exc:
            raise EndpointError("silent", f"no answer within {self.seconds:g} s") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise EndpointError("dead", f"cannot be reached: {type(exc).__name__}") from exc

    def _body(self, response: httpx.Response, end: float) -> bytes:
        packed = response.headers.get("content-encoding", "identity")
        if packed != "identity":
            raise EndpointError("malformed", f"want a plain answer, got one packed as {packed[:20]!r}")
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > self._limit:
                raise EndpointError("malformed", f"want an answer of at most {self._limit} bytes, got more")
            if time.monotonic() > end:
                raise EndpointError("silent", f"no whole answer within {self.seconds:g} s")
        return bytes(content)
