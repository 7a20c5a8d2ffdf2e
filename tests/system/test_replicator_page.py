"""The page of a replicator, in a browser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from dstack.transport.listener import Listener
from replicator.app import replicator_app
from replicator.node import Replicator
from tests.worlds import SETTINGS, Site, make_handover, make_node

CHROMIUM = Path("/usr/bin/chromium")
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, from Debian's package."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium here: `make parts` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, node: Replicator, name: str) -> Iterator[tuple[Any, list[str], str]]:
    """The page of *node*, what the browser complained about or was made to fetch, and the address."""
    with Listener(replicator_app(node)).running() as listener:
        url = f"http://127.0.0.1:{listener.port}"
        page = browser.new_page(viewport={"width": 1000, "height": 1200})
        noticed: list[str] = []
        page.on("console", lambda message: noticed.append(message.text))
        page.on("dialog", lambda dialog: noticed.append(dialog.message))
        page.on("request", lambda request: noticed.append(request.url) if request.url != f"{url}/" else None)
        page.goto(f"{url}/")
        if SCREENSHOTS:
            page.screenshot(path=f"{SCREENSHOTS}/{name}.png", full_page=True)
        yield page, noticed, url
        page.close()


def test_it_shows_what_is_held_and_from_whom(browser: Any, tmp_path: Path, site: Site) -> None:
    """Fingerprint, custody back to the genesis, what waits, what was refused are there; no secret, no request out."""
    world = make_handover(tmp_path, site)
    receipt = world.hand_over()
    world.new.request_key()
    with httpx.Client(trust_env=False) as client, Listener(replicator_app(world.new)).running() as listener:
        client.post(f"http://127.0.0.1:{listener.port}/onboard", content=b"{}")

    with opened(browser, world.new, "replicator-holds") as (page, noticed, _):
        text = page.inner_text("body")
        custody = page.inner_text("#custody")
        pending = page.locator("#pending tr").count()
        refusals = page.inner_text("#refusals")

    assert receipt.terms.fingerprint.hex() in text
    assert receipt.terms.genesis.hex() in custody
    assert receipt.hash().hex() in custody
    assert pending == 2
    assert "/onboard" in refusals
    assert "MessageMalformedError" in refusals
    assert "A simulated root is trusted" in text
    assert world.new.around.secure_file.held().digest.hex() not in text
    assert noticed == []


def test_what_strangers_say_is_text(browser: Any, tmp_path: Path, site: Site) -> None:
    """Markup, scripts and control characters in a refused message run nothing and load nothing."""
    world = make_handover(tmp_path, site)
    evil = '<script>alert(1)</script><img src=x onerror="alert(2)">\u202e\u0000' + "x" * 5000
    with Listener(replicator_app(world.old)).running() as listener, httpx.Client(trust_env=False) as client:
        answer = client.post(f"http://127.0.0.1:{listener.port}/onboard", content=json.dumps({evil: 1}))
        assert answer.status_code == 400

    with opened(browser, world.old, "replicator-evil") as (page, noticed, _):
        refusals = page.inner_text("#refusals")
        scripts = page.locator("script, img").count()

    assert "version" in refusals or "<script>" in refusals
    assert scripts == 0
    assert noticed == []


def test_a_bare_node_says_so(browser: Any, tmp_path: Path, site: Site) -> None:
    """A node without anything, in its most careless settings, names each of these."""
    settings = replace(SETTINGS, rpc_urls=(), endpoints_from_configure=True)
    world = make_handover(tmp_path, site)
    node = make_node(
        tmp_path / "bare", site.machine(tmp_path / "bare"), site, world.chain, world.clock, settings, old_forms=True
    )

    with opened(browser, node, "replicator-bare") as (page, noticed, url):
        warnings = page.locator(".warning").count()
        text = page.inner_text("body")
        headers = httpx.get(f"{url}/", trust_env=False).headers

    assert "No secure file yet" in text
    assert warnings == 4
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert noticed == []
