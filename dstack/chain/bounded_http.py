"""One HTTP exchange with somebody who is not trusted to keep it short, and what came of it in one word."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from dstack.errors import ChainUnavailableError, PeerUnavailableError
from dstack.web.client import bounded_body, bounded_client


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
        self._client = bounded_client(seconds=seconds, connections=connections, user_agent=user_agent)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def exchange(self, method: str, url: str, json_body: bytes | None = None) -> Reply:
        """Ask once.

        Raises:
            EndpointError: No whole answer came in time, or too long a one.
        """
        headers = {} if json_body is None else {"content-type": "application/json"}
        try:
            with self._client.stream(method, url, content=json_body, headers=headers) as response:
                return Reply(response.status_code, bounded_body(response, self._limit))
        except PeerUnavailableError as exc:
            raise EndpointError("malformed", str(exc)) from exc
        except httpx.TimeoutException as exc:
            raise EndpointError("silent", f"no answer within {self.seconds:g} s") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise EndpointError("dead", f"cannot be reached: {type(exc).__name__}") from exc
