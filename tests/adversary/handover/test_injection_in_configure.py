"""Attack: what the host says at /configure reaches a shell, a path or a URL. In the original it reached a shell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from dstack.errors import ConfigError
from dstack.transport.listener import Listener
from replicator.app import replicator_app
from replicator.configure import parse_configure
from tests.worlds import SETTINGS, Clock, MemoryChain, Site, make_node

EVIL_URLS = [
    "http://x/$(touch /tmp/owned)\n",
    "http://x/`id`\x00",
    "http://x; rm -rf /",
    "http://x y",
    "file:///etc/passwd",
    "unix:///var/run/dstack.sock",
    "gopher://127.0.0.1",
    "../../etc/passwd",
    "-oProxyCommand=id",
    "javascript:alert(1)",
    "http://\u0441hain.example",
    "http://x/" + "a" * 3000,
    "",
]
EVIL_LINES = [
    b"ETH_RPC_URL=http://x\nLD_PRELOAD=/tmp/evil.so",
    b"ETH_RPC_URL=http://x\nETH_RPC_URL=http://y",
    b"PATH=/tmp",
    b"CONTRACT=0x" + b"66" * 20,
    b"SECURE_FILE=/etc/shadow",
    b"ETH_RPC_URL",
    b"=http://x",
    b"ETH_RPC_URL=\xff",
    b"export ETH_RPC_URL=http://x",
    b"",
]


@pytest.mark.parametrize("url", EVIL_URLS)
@pytest.mark.parametrize("old", [False, True])
def test_what_is_no_plain_url_is_refused(url: str, old: bool) -> None:
    """Only http and https URLs of plain characters are taken, in both forms, and none is repeated in the error."""
    raw = b"ETH_RPC_URL=" + url.encode() if old else json.dumps({"rpc_urls": [url]}).encode()
    if old and url.endswith("\n"):
        raw = raw.replace(b"\n", b" x")

    with pytest.raises(ConfigError, match=r"configure: want|URLs of at most|want ASCII") as refused:
        parse_configure(raw, old_forms=True)

    assert not url or url not in str(refused.value)


@pytest.mark.parametrize("raw", EVIL_LINES)
def test_other_keys_are_refused(raw: bytes) -> None:
    """The old form has one key; nothing becomes a variable of any program."""
    with pytest.raises(ConfigError, match="configure: want"):
        parse_configure(raw, old_forms=True)


@pytest.mark.parametrize(
    "members",
    [{"rpc_urls": ["http://x"], "operator": "66" * 20}, {"rpc_url": "http://x"}, {"rpc_urls": "http://x"}, {}],
)
def test_other_members_are_refused(members: dict[str, object]) -> None:
    """The contracts are those of the settings file: nobody brings others."""
    with pytest.raises(ConfigError, match=r"configure"):
        parse_configure(json.dumps(members).encode(), old_forms=True)


def test_nothing_evil_changes_a_node(tmp_path: Path, site: Site) -> None:
    """After all of it the node is as unconfigured as before, and no file has appeared."""
    settings = replace(SETTINGS, rpc_urls=(), endpoints_from_configure=True)
    machine = site.machine(tmp_path / "node")
    node = make_node(tmp_path / "node", machine, site, MemoryChain(), Clock(), settings, old_forms=True)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with (
        Listener(replicator_app(node)).running() as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", trust_env=False) as client,
    ):
        codes = {client.post("/configure", json={"rpc_urls": [url]}).status_code for url in EVIL_URLS}
        codes |= {client.post("/configure", content=line).status_code for line in EVIL_LINES}
        status = client.get("/status").json()

    assert codes == {400}
    assert status["endpoints"] == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
