"""The HTTP surface: paths, status codes, and who may ask what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from dstack.transport.listener import Listener
from replicator.app import replicator_app
from replicator.node import Replicator
from tests.worlds import CONTRACT, SECRET, Clock, Handover, MemoryChain, Site, make_handover, make_node

CONFIGURE = {"rpc_url": "http://127.0.0.1:8545", "kms_auth": CONTRACT.hex()}


@contextmanager
def serving(node: Replicator) -> Iterator[httpx.Client]:
    """A client of *node* on loopback."""
    with (
        Listener(replicator_app(node)).running() as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", trust_env=False) as client,
    ):
        yield client


@pytest.fixture
def world(tmp_path: Path, site: Site) -> Handover:
    """An old and a new node."""
    return make_handover(tmp_path, site)


@pytest.fixture
def bare(tmp_path: Path, site: Site) -> Replicator:
    """A node whose settings leave the chain open."""
    machine = site.machine(tmp_path / "bare")
    return make_node(tmp_path / "bare", machine, site, MemoryChain(), Clock(), settings=None)


def test_three_rounds_over_http(world: Handover) -> None:
    """The documents of the three rounds travel as bodies, and /status tells where each node is."""
    with serving(world.new) as new, serving(world.old) as old:
        request = new.post("/requestKey")
        answer = old.post("/onboard", content=request.content)
        receipt = new.post("/receiveKey", content=answer.content)
        status = new.get("/status")

    assert [each.status_code for each in (request, answer, receipt, status)] == [200] * 4
    assert receipt.json() == answer.json()["receipt"]
    assert status.json() == {
        "version": 2,
        "has_secure_file": True,
        "kms_auth": f"0x{CONTRACT.hex()}",
        "pending_requests": 0,
        "answered_requests": 0,
        "receipts": 1,
        "simulated_root": True,
    }
    assert world.new_secure_file.read_bytes() == SECRET


def test_denial_is_403_and_names_the_rule(world: Handover) -> None:
    """The chain's refusal is told with the rule and the block."""
    world.chain.allowed.remove(world.new_machine.booted.app_compose.compose_hash)
    request = world.new.request_key()

    with serving(world.old) as old:
        denied = old.post("/onboard", content=request)

    assert denied.status_code == 403
    assert (denied.json()["kind"], denied.json()["rule"], denied.json()["block"]) == (
        "KeyReleaseDeniedError",
        "COMPOSE_HASH",
        1234,
    )


@pytest.mark.parametrize(
    ("path", "code"), [("/onboard", 400), ("/receiveKey", 400), ("/getkey", 400), ("/nothing", 404)]
)
def test_malformed_bodies_are_400(world: Handover, path: str, code: int) -> None:
    """A body that is no document is bad input; an unknown path is not found."""
    with serving(world.old) as old:
        answer = old.post(path, content=b"pubk=00&quote=00")

    assert answer.status_code == code


def test_silent_chain_is_503(world: Handover) -> None:
    """That the chain could not be asked is told as such, not as a refusal."""
    request = world.new.request_key()
    world.chain.reachable = False

    with serving(world.old) as old:
        answer = old.post("/onboard", content=request)

    assert (answer.status_code, answer.json()["kind"]) == (503, "ChainUnavailableError")


def test_repeated_request_is_409(world: Handover) -> None:
    """A request that was answered before is a conflict."""
    request = world.new.request_key()

    with serving(world.old) as old:
        codes = [old.post("/onboard", content=request).status_code for _ in range(2)]

    assert codes == [200, 409]


def test_configure_is_taken_once(bare: Replicator) -> None:
    """A node without chain settings makes no request until it is configured, and is configured once."""
    with serving(bare) as client:
        before = client.post("/requestKey")
        configured = client.post("/configure", json=CONFIGURE)
        again = client.post("/configure", json=CONFIGURE)
        after = client.post("/requestKey")

    assert [each.status_code for each in (before, configured, again, after)] == [409, 200, 409, 200]
    assert "no chain is configured" in before.json()["error"]
    assert "set already" in again.json()["error"]


def test_configure_is_refused_where_the_settings_file_has_a_chain(world: Handover) -> None:
    """Whoever reaches the port cannot replace the chain of the settings file."""
    with serving(world.new) as new:
        answer = new.post("/configure", json=CONFIGURE)

    assert answer.status_code == 409


def test_configure_is_refused_where_there_is_something_to_protect(bare: Replicator, tmp_path: Path) -> None:
    """A node that holds the secure file takes no chain from the network: it would decide who gets the file."""
    (tmp_path / "bare" / "secure-file").write_bytes(SECRET)

    with serving(bare) as client:
        answer = client.post("/configure", json=CONFIGURE)

    assert answer.status_code == 409
    assert "holds the secure file" in answer.json()["error"]


def test_getkey_is_for_callers_on_this_machine(world: Handover) -> None:
    """A caller on loopback gets a key by tag; the key is not the secure file."""
    with serving(world.old) as old:
        answer = old.post("/getkey", json={"tag": "disk"})

    assert answer.status_code == 200
    assert bytes.fromhex(answer.json()["key"]) == world.old.derive_key("disk")


def from_network(app: FastAPI) -> FastAPI:
    """The same application, as a caller at another address sees it."""

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "client": ("192.0.2.7", 40000)}, receive, send)

    outer = FastAPI()
    outer.mount("/", outside)
    return outer


def test_getkey_is_refused_to_the_network(world: Handover) -> None:
    """A caller at another address gets no key; the other paths answer it."""
    app = from_network(replicator_app(world.old))
    with (
        Listener(app).running() as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", trust_env=False) as client,
    ):
        key, status = client.post("/getkey", json={"tag": "disk"}), client.get("/status")

    assert key.status_code == 409
    assert "from the network" in key.json()["error"]
    assert status.status_code == 200


def test_tag_is_bounded(world: Handover) -> None:
    """Empty, overlong and missing tags are refused."""
    with serving(world.old) as old:
        bodies = ({"tag": ""}, {"tag": "x" * 257}, {}, {"tag": 1})
        codes = [old.post("/getkey", content=json.dumps(body)).status_code for body in bodies]

    assert codes == [400] * 4
