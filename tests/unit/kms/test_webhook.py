"""The webhook: upstream's question in upstream's form, and no grant from anything but a whole answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy import Denied, Granted, Rule
from dstack.policy.decision import NO_BLOCK
from kms.webhook import WebhookAuthority
from tests.http_answers import Answering, answering
from tests.unit.chain.test_kms_auth import BOOT

YES = {"isAllowed": True, "gatewayAppId": "gateway", "reason": ""}
GRANTED = Granted(NO_BLOCK, gateway_app_id="gateway")
ABOUT = {
    "status": "ok",
    "kmsContractAddr": "0x" + "c0" * 20,
    "gatewayAppId": "gateway",
    "chainId": 5,
    "appImplementation": "0x" + "1a" * 20,
    "ethRpcUrl": "https://rpc.example:8545/key",
}


@contextmanager
def asking(
    answer: Callable[[str, str, bytes], tuple[int, bytes] | None], path: str = "", **settings: float
) -> Iterator[tuple[WebhookAuthority, Answering]]:
    """An authority over a server that answers so."""
    with answering(answer) as server, closing(WebhookAuthority(server.url + path, **settings)) as authority:
        yield authority, server


def says(about: object) -> Callable[[str, str, bytes], tuple[int, bytes]]:
    """A server that answers this in JSON, whatever it is asked."""
    return lambda *_: (200, json.dumps(about).encode())


def test_the_question_is_upstreams() -> None:
    """One slash, the kind of question in the path, BootInfo in camelCase, and our name."""
    with asking(says(YES), "/") as (authority, server):
        assert (authority.authorize_app(BOOT), authority.authorize_kms(BOOT)) == (GRANTED,) * 2
    assert [(method, path) for method, path, _ in server.asked] == [
        ("POST", "/bootAuth/app"),
        ("POST", "/bootAuth/kms"),
    ]
    assert server.asked[0][2].decode() == BOOT.to_json()
    assert json.loads(server.asked[0][2])["appId"] == "a1" * 20
    assert server.agents[0].startswith("dstack-kms/")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({**YES, "isAllowed": False, "reason": "compose hash not allowed"}, "compose hash not allowed"),
        ({**YES, "isAllowed": False}, "no reason given"),
        ({**YES, "isAllowed": False, "reason": "but\x1b[2J"}, "but?[2J"),
    ],
)
def test_a_no_is_a_no(answer: dict[str, object], reason: str) -> None:
    """A denial keeps its reason, printable."""
    with asking(says(answer)) as (authority, _):
        decision = authority.authorize_app(BOOT)

    assert decision == Denied(Rule.OTHER, "app " + "a1" * 20, reason, NO_BLOCK)


def test_a_yes_may_have_a_reason() -> None:
    """Upstream's server for development says why it allows; its KMS looks at `isAllowed` alone."""
    with asking(says({**YES, "reason": "mock app always allowed"})) as (authority, _):
        assert authority.authorize_app(BOOT) == GRANTED


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((500, json.dumps(YES).encode()), "answers with HTTP status 500"),
        ((302, json.dumps(YES).encode()), "answers with HTTP status 302"),
        ((400, json.dumps(YES).encode()), "answers with HTTP status 400"),
        ((200, b""), "want JSON, got something else"),
        ((200, json.dumps(YES).encode("utf-16")), "want JSON, got something else"),
        (
            (200, b'{"isAllowed": false, "isAllowed": true, "gatewayAppId": "", "reason": ""}'),
            "want JSON, got something",
        ),
        ((200, b"[true]"), "want a JSON object, got list"),
        ((200, b'{"isAllowed": true}'), "gatewayAppId: want str, got NoneType"),
        ((200, b'{"isAllowed": true, "gatewayAppId": ""}'), "reason: want str, got NoneType"),
        ((200, b'{"gatewayAppId": "", "reason": ""}'), "isAllowed: want bool, got NoneType"),
        ((200, b'{"isAllowed": 1, "gatewayAppId": "", "reason": ""}'), "isAllowed: want bool, got int"),
        ((200, b'{"isAllowed": "true", "gatewayAppId": "", "reason": ""}'), "isAllowed: want bool, got str"),
        ((200, b" " * (65 << 10)), "want an answer of at most 65536 bytes, got more"),
        (None, "no answer within 0.3 s"),
    ],
)
def test_anything_else_is_neither_yes_nor_no(said: tuple[int, bytes] | None, words: str) -> None:
    """Another status, no JSON, a member that is missing or of another type, too much or nothing is no answer."""
    served = asking(lambda *_: said, seconds=0.3)
    with served as (authority, _), pytest.raises(ChainUnavailableError, match=f"auth server .*{words}"):
        authority.authorize_app(BOOT)


def test_a_server_that_is_not_there_is_no_answer() -> None:
    """The error names scheme, host and port."""
    with pytest.raises(
        ChainUnavailableError, match=r"^auth server http://127\.0\.0\.1:9: cannot be reached: ConnectError$"
    ):
        WebhookAuthority("http://127.0.0.1:9/secret").authorize_kms(BOOT)


@pytest.mark.parametrize("url", ["http://auth-api:8000", "http://10.0.0.1", "ftp://localhost", "localhost:8000", ""])
def test_it_is_trusted_over_tls_or_on_this_machine_alone(url: str) -> None:
    """Elsewhere somebody in between could say yes."""
    with pytest.raises(ConfigError, match=r"^core\.auth_api\.webhook\.url: want (an )?http"):
        WebhookAuthority(url)


def test_what_it_says_of_itself_is_published() -> None:
    """Contract, chain, gateway and implementation come from `GET <url>`, and are told later without asking."""
    with asking(says(ABOUT), "/hook") as (authority, server):
        assert authority.check(chain_id=5) == NO_BLOCK
        with pytest.raises(ConfigError, match="chain id: want 1, got 5"):
            authority.check(chain_id=1)
        asked = len(server.asked)
        facts = authority.recent_facts()

    assert facts is not None
    assert (facts.kms_contract.lower(), facts.chain_id, facts.gateway_app_id) == (
        ABOUT["kmsContractAddr"],
        5,
        "gateway",
    )
    assert facts.rpc_url == "https://rpc.example:8545"
    assert (facts.app_implementation.lower(), asked) == (ABOUT["appImplementation"], len(server.asked))
    assert server.asked[0][:2] == ("GET", "/hook")


@pytest.mark.parametrize("named", [None, "", 5, "rpc.example", "https://", "http://[", "https://rpc\n.example"])
def test_an_rpc_url_out_of_form_is_none(named: object) -> None:
    """It is only shown: where an auth server names none, or something else, everything else of it stands."""
    with asking(says({**ABOUT, "ethRpcUrl": named})) as (authority, _):
        authority.check(chain_id=5)
        facts = authority.recent_facts()

    assert facts is not None
    assert facts.rpc_url == ""


@pytest.mark.parametrize("missing", ["status", "kmsContractAddr", "gatewayAppId", "chainId", "appImplementation"])
def test_what_is_missing_is_named(missing: str) -> None:
    """A server of another kind does not pass as an auth server."""
    about = {name: value for name, value in ABOUT.items() if name != missing}
    with asking(says(about)) as (authority, _), pytest.raises(ChainUnavailableError, match=f"{missing}: want "):
        authority.check()


def test_who_asks_the_same_at_the_same_time_shares_one_answer() -> None:
    """Ten threads with one question while it is being asked cost one request; a later one is asked anew."""
    go = threading.Event()

    def slow(*_: object) -> tuple[int, bytes]:
        go.wait(3)
        return 200, json.dumps(YES).encode()

    with asking(slow) as (authority, server):
        decisions: list[object] = []
        threads = [threading.Thread(target=lambda: decisions.append(authority.authorize_app(BOOT))) for _ in range(10)]
        for thread in threads:
            thread.start()
        threading.Event().wait(0.2)
        go.set()
        for thread in threads:
            thread.join()
        at_once = len(server.asked)
        authority.authorize_app(BOOT)

    assert (decisions, at_once, len(server.asked)) == ([GRANTED] * 10, 1, 2)
