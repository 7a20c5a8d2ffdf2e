"""Asking several endpoints at once, without waiting for those that do not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from urllib.parse import urlsplit

import httpx

from dstack.chain.bounded_http import EndpointError
from dstack.chain.client import shown_endpoint
from dstack.chain.rpc import Request, RpcEndpoint
from dstack.chain.standing import Standing
from dstack.errors import ConfigError
from dstack.policy.decision import BlockRef
from dstack.web.urls import address_of, is_this_machine

REQUESTS_AT_ONCE = 16
_PORTS = {"http": 80, "https": 443}


class Endpoint:
    """One of several endpoints, and how it stands.

    Args:
        url: Where it is asked.
        name: What may be shown of that.
        seconds: How long one request may take.

    Attributes:
        standing: What is wrong with it.
        claim: A block that it alone has named, until the others come there.
    """

    def __init__(self, url: str, name: str, seconds: float) -> None:
        self._rpc = RpcEndpoint(url, seconds=seconds)
        self._seconds = seconds
        self._free = threading.BoundedSemaphore(REQUESTS_AT_ONCE)
        self.standing = Standing(name)
        self.claim: BlockRef | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.standing.name!r})"

    def submit(self, pool: ThreadPoolExecutor, requests: Sequence[Request]) -> Future[list[object]] | None:
        """Begin to ask; None when it owes too many answers already."""
        if not self._free.acquire(blocking=False):
            self.standing.failed("silent", "owes too many answers")
            return None
        try:
            return pool.submit(self._ask, requests)
        except RuntimeError:  # The pool has ended meanwhile.
            self._free.release()
            self.standing.failed("dead", "is not asked any more")
            return None

    def close(self) -> None:
        """Close its connections."""
        self._rpc.close()

    def _ask(self, requests: Sequence[Request]) -> list[object]:
        began = time.monotonic()
        try:
            results = self._rpc.batch(requests)
        except EndpointError as exc:
            self.standing.failed(exc.fault, str(exc))
            raise
        finally:
            self._free.release()
        if time.monotonic() - began <= self._seconds:
            self.standing.answered()
        return results


Results = dict[Endpoint, list[object]]


def named_endpoints(urls: Sequence[str], *, seconds: float) -> list[Endpoint]:
    """Endpoints by the host and port of their URLs.

    Raises:
        ConfigError: A URL is not of its form, or two lead to one host.
    """
    require_different_hosts(urls)
    return [Endpoint(url, shown_endpoint(url), seconds) for url in urls]


def require_different_hosts(urls: Sequence[str]) -> None:
    """See that nobody has two voices: each URL leads to another host, or to another port of this machine.

    Spelling, path, credentials and scheme make no other host. Two names that a resolver leads to one are not seen.

    Raises:
        ConfigError: A URL is not of its form, or two lead to one host.
    """
    seen: set[tuple[str, int | None]] = set()
    for url in urls:
        shown, voice = shown_endpoint(url), _voice(url)
        if voice in seen:
            raise ConfigError(f"chain endpoints: want each at a host of its own, got {shown} beside another there")
        seen.add(voice)


def unprotected(urls: Sequence[str]) -> tuple[str, ...]:
    """Endpoints elsewhere whose answers anybody in between can change, as they may be shown."""
    return tuple(shown_endpoint(url) for url in urls if urlsplit(url).scheme == "http" and _voice(url)[0])


def _voice(url: str) -> tuple[str, int | None]:
    """The host; on this machine none, and the port."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ConfigError("RPC URL: want an http or https URL with a host") from exc
    host = parts.raw_host.decode().rstrip(".")
    if is_this_machine(host):
        return "", parts.port or _PORTS[parts.scheme]
    return str(address_of(host) or host), None


def gather(
    pool: ThreadPoolExecutor,
    jobs: Mapping[Endpoint, Sequence[Request]],
    *,
    seconds: float,
    is_enough: Callable[[Results], bool],
) -> Results:
    """What came in time.

    Args:
        pool: Asks.
        jobs: What each endpoint is asked.
        seconds: How long to wait at most.
        is_enough: Whether what the endpoints said that answered the last time will do; only when it will not, the
            others are waited for too.
    """
    end = time.monotonic() + seconds
    heard = {endpoint for endpoint in jobs if endpoint.standing.is_heard}
    asked = {endpoint: endpoint.submit(pool, requests) for endpoint, requests in jobs.items()}
    running = {endpoint: future for endpoint, future in asked.items() if future is not None}
    wait([future for endpoint, future in running.items() if endpoint in heard], timeout=seconds)
    if not is_enough(_finished(running)):
        wait(running.values(), timeout=max(0.0, end - time.monotonic()))
    for endpoint, future in running.items():
        if not future.done() and time.monotonic() >= end:
            endpoint.standing.failed("silent", f"no answer within {seconds:g} s")
    return _finished(running)


def _finished(running: Mapping[Endpoint, Future[list[object]]]) -> Results:
    results = {}
    for endpoint, future in running.items():
        if not future.done() or future.cancelled():
            continue
        error = future.exception()
        if error is None:
            results[endpoint] = future.result()
        elif not isinstance(error, EndpointError):
            raise error
    return results
