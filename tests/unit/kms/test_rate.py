"""Limits: an address over its own takes nothing from the others, and anonymous calls cost the chain next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import httpx
import pytest
from fastapi import FastAPI

from dstack.chain.endpoints import Endpoints
from dstack.chain.kms_auth import KmsAuthReader
from dstack.transport.listener import Listener
from dstack.transport.server import Method, prpc_app
from dstack.wire.kms import GetTempCaCertResponse
from kms import rate
from kms.authorization import SelfAuthorization
from kms.decisions import Question, Subject
from kms.rate import RateLimit, RateLimited
from tests.rpc_nodes import TARGET, Node, running
from tests.unit.chain.test_kms_auth import kms_auth
from tests.unit.kms.conftest import World


@dataclass
class Seconds:
    """A clock that stands until it is moved."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def outcomes(limit: RateLimit, address: str, count: int) -> list[str | None]:
    """What *count* requests from one address come to."""
    return [limit.refusal(address) for _ in range(count)]


def test_an_address_gets_its_rate_and_twice_as_many_at_once() -> None:
    """After the burst there is one request for each part of a second that passed, and never more than the burst."""
    clock = Seconds()
    limit = RateLimit(everybody=1000, peer=5, now=clock)

    assert outcomes(limit, "10.0.0.1", 12) == [None] * 10 + ["peer"] * 2
    clock.now += 0.2
    assert outcomes(limit, "10.0.0.1", 2) == [None, "peer"]
    clock.now += 1000
    assert outcomes(limit, "10.0.0.1", 11) == [None] * 10 + ["peer"]


def test_an_address_over_its_limit_takes_nothing_from_others() -> None:
    """A flood from one address leaves everybody else's tokens where they are."""
    limit = RateLimit(everybody=10, peer=2, now=Seconds())
    outcomes(limit, "10.0.0.1", 1000)

    assert outcomes(limit, "10.0.0.2", 4) == [None] * 4


def test_all_addresses_together_have_a_limit() -> None:
    """Many addresses cannot ask more often than the sum allows."""
    limit = RateLimit(everybody=10, peer=2, now=Seconds())

    said = [limit.refusal(f"10.0.{number}.1") for number in range(25)]

    assert said == [None] * 20 + ["everybody"] * 5


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("", "", True),
    ],
)
def test_who_counts_as_one(one: str, other: str, same: bool) -> None:
    """An IPv6 network of 64 bits is one address; IPv4 is the same however it is written."""
    limit = RateLimit(everybody=1000, peer=0.5, now=Seconds())

    assert (limit.refusal(one), limit.refusal(other)) == (None, "peer" if same else None)


def test_addresses_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers cannot fill the memory; the address that was silent longest is forgotten first."""
    monkeypatch.setattr(rate, "PEERS_LIMIT", 3)
    limit = RateLimit(everybody=1000, peer=0.5, now=Seconds())
    for address in ("a", "b", "c", "d"):
        limit.refusal(address)

    assert [limit.refusal(address) for address in ("d", "c", "b")] == ["peer"] * 3
    assert limit.refusal("a") is None


def served(answer: Callable[..., GetTempCaCertResponse], limit: RateLimit) -> FastAPI:
    """A service with one method that anybody may call."""
    app = prpc_app({"GetTempCaCert": Method(None, answer)}, prefix="KMS.")
    app.add_middleware(RateLimited, limit=limit)
    return app


def test_a_request_over_the_limit_is_refused_unread() -> None:
    """Status 429, when to try again, the connection closed; the method is not called."""
    called: list[int] = []
    app = served(
        lambda *_: called.append(1) or GetTempCaCertResponse(), RateLimit(everybody=100, peer=1, now=Seconds())
    )
    with Listener(app).running() as listener:
        url = f"http://127.0.0.1:{listener.port}/prpc/GetTempCaCert?json"
        answers = [httpx.post(url) for _ in range(4)]
        elsewhere = httpx.get(f"http://127.0.0.1:{listener.port}/health")

    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert answers[3].json() == {
        "error": "too many requests from your address: want fewer, try again in a second",
        "kind": "unavailable",
    }
    assert (answers[3].headers["retry-after"], len(called), elsewhere.status_code) == ("1", 2, 404)


def test_anonymous_calls_do_not_use_up_the_endpoints(world: World) -> None:
    """Two hundred calls that ask about this KMS itself cost each endpoint a handful of requests."""
    nodes = [Node(say=kms_auth()) for _ in range(3)]
    with running(*nodes), closing(Endpoints([node.url for node in nodes])) as endpoints:
        own = SelfAuthorization(world.machine, world.verifier, KmsAuthReader(endpoints, TARGET))

        def answer(*_: object) -> GetTempCaCertResponse:
            own.require(Question(Subject.SELF, "anybody"))
            return GetTempCaCertResponse()

        app = served(answer, RateLimit(everybody=1000, peer=1000))
        with Listener(app).running() as listener, httpx.Client() as client:
            url = f"http://127.0.0.1:{listener.port}/prpc/GetTempCaCert?json"
            statuses = {client.post(url).status_code for _ in range(200)}

    assert statuses == {200}
    assert max(len(node.asked) for node in nodes) < 40
