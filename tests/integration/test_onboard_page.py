"""The operator's page before there are keys, in a real browser."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_utils.crypto import keccak

from dstack.transport.listener import Listener
from kms.app import onboard_app
from kms.keystore import open_keystore
from kms.onboard import Onboarding
from kms.onboard_service import OnboardService
from kms.permission import Permission, PermissionWatch, State
from tests.unit.kms.conftest import World, allow_kms, make_world, world
from tests.unit.kms.test_app import SETTINGS

__all__ = ["make_world", "world"]

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def url(world: World, tmp_path: Path) -> Iterator[str]:
    """Where the page is; the chain is asked anew each time."""
    ticks = itertools.count(step=10)
    with open_keystore(tmp_path) as keystore:
        onboarding = Onboarding(keystore, world.machine, world.verifier, world.own, world.chain)
        service = OnboardService(onboarding, world.own, SETTINGS, finish=lambda: None)
        watch = PermissionWatch(world.own, world.chain, lambda: next(ticks))
        with Listener(onboard_app(service, watch, simulated=True)).running() as listener:
            yield f"http://127.0.0.1:{listener.port}/"


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser that reports what goes wrong in it; the name evil.example leads to this machine."""
    if not CHROMIUM.exists():
        pytest.skip("no chromium here: scripts/install_debian.py installs it")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        opened = browser.new_page()
        opened.problems = []
        opened.on("console", lambda message: opened.problems.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: opened.problems.append(str(error)))
        yield opened
        browser.close()


def test_operator_sees_what_to_allow_and_when_it_is(page: Any, url: str, world: World) -> None:
    """The page shows the value, the command and the calls; it turns from denied to allowed without further doing."""
    own = world.own.appraisal()
    page.goto(url)

    page.wait_for_selector("#permission.denied")
    assert page.inner_text("#permission").startswith(
        "not allowed yet: Aggregated MR not allowed (AGGREGATED_MR, block "
    )
    assert page.inner_text("#mr-aggregated") == own.mr_aggregated.hex()
    assert f"dstack govern propose KmsAggregatedMr={own.mr_aggregated.hex()} KmsDevice={own.device_id.hex()}" in (
        page.inner_text("#propose")
    )
    call = keccak(text="addKmsAggregatedMr(bytes32)")[:4].hex() + own.mr_aggregated.hex()
    assert f"0x{call}" in page.inner_text("main")
    assert "NOT PRODUCTION" in page.inner_text("main")

    allow_kms(world)
    page.wait_for_selector("#permission.allowed")
    assert page.problems == []


def test_name_that_was_made_to_lead_here_reaches_nothing(page: Any, url: str, world: World) -> None:
    """A page of another name, at which the browser takes this service for its own site, can neither see nor ask it."""
    allow_kms(world)
    shown = page.goto(url.replace("127.0.0.1", "evil.example"))
    ask = "fetch('/prpc/Onboard.Bootstrap?json', {method: 'POST', body: '{\"domain\":\"x\"}'}).then(a => a.text())"

    answers = [shown.text(), page.evaluate(ask)]

    assert [json.loads(answer)["error"].partition(", got ")[0] for answer in answers] == [
        "want Host to be an IP address, localhost or a name in core.onboard.names"
    ] * 2
    assert httpx.get(url + "finish").json()["error"] == "KMS has not been bootstrapped yet"


def test_page_needs_nothing_from_elsewhere(url: str) -> None:
    """Every address in it is its own, and the browser is told to take no other."""
    parts = {name: httpx.get(url + name) for name in ("", "onboard.css", "onboard.js", "permission")}

    assert {name: part.status_code for name, part in parts.items()} == dict.fromkeys(parts, 200)
    for part in parts.values():
        assert part.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert part.headers["x-content-type-options"] == "nosniff"
    assert "rpc.example" in parts[""].text
    assert "secret" not in parts[""].text
    assert "//" not in parts["onboard.css"].text + parts["onboard.js"].text


def test_page_says_when_the_evidence_does_not_hold(url: str, world: World) -> None:
    """A machine whose own evidence fails learns why, instead of a value that nobody could allow."""
    world.collateral.collateral = None

    shown = httpx.get(url).text

    assert "Its own evidence does not hold now: collateral: none for this platform" in shown
    assert "mr-aggregated" not in shown


@pytest.mark.parametrize(
    ("reachable", "allowed", "said"),
    [
        (True, True, Permission(State.ALLOWED, "allowed (block 77)")),
        (True, False, Permission(State.DENIED, "not allowed yet: Aggregated MR not allowed (AGGREGATED_MR, block 77)")),
        (False, True, Permission(State.WAITING, "could not ask: chain: no endpoint answered")),
    ],
)
def test_could_not_ask_is_neither(world: World, reachable: bool, allowed: bool, said: Permission) -> None:
    """What the page polls tells three cases apart."""
    if allowed:
        allow_kms(world)
    world.chain.reachable = reachable

    assert PermissionWatch(world.own, world.chain).permission() == said


def test_many_pages_ask_the_chain_once(world: World) -> None:
    """For seconds, whoever looks gets the same answer."""
    now = [0.0]
    watch = PermissionWatch(world.own, world.chain, lambda: now[0])

    for now[0] in (0.0, 1.0, 2.9, 3.0):
        watch.permission()

    assert len(world.chain.asked) == 2
