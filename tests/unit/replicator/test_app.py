"""The HTTP surface: paths, status codes, and who may ask what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from markupsafe import escape

from dstack.attestation.quote import parse_quote
from dstack.keys.sealing_stream import CHUNK
from dstack.transport.listener import Listener
from replicator import receipts
from replicator.app import container_app, replicator_app
from replicator.containers import Container
from replicator.documents import parse_request
from replicator.node import Replicator
from replicator.old_forms import MARK
from tests.worlds import (
    CONTRACT,
    OPERATOR,
    SECRET,
    SETTINGS,
    Clock,
    Handover,
    MemoryChain,
    Site,
    make_handover,
    make_node,
    place_genesis,
)

URLS = {"rpc_urls": ["http://127.0.0.1:8545"]}
TOKEN = "t" * 40
CONTAINERS = (
    Container("web", token_sha256=hashlib.sha256(TOKEN.encode()).digest()),
    Container("db", token_sha256=hashlib.sha256(b"d" * 40).digest()),
)


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


def bare(folder: Path, site: Site, *, old_forms: bool = False) -> Replicator:
    """A node whose settings leave the endpoints open."""
    settings = replace(SETTINGS, rpc_urls=(), endpoints_from_configure=True)
    machine = site.machine(folder)
    return make_node(folder, machine, site, MemoryChain(), Clock(), settings, old_forms=old_forms)


def test_three_rounds_over_http(world: Handover) -> None:
    """The documents of the three rounds travel as bodies, and /status tells where each node is."""
    with serving(world.new) as new, serving(world.old) as old:
        request = new.post("/requestKey")
        answer = old.post("/onboard", content=request.content)
        receipt = new.post("/receiveKey", content=answer.content)
        status, page = new.get("/status"), old.post("/receipts").json()

    assert [each.status_code for each in (request, answer, receipt, status)] == [200] * 4
    assert receipt.json() == json.loads(answer.content.partition(b"\n")[0])["receipt"]
    assert world.new_secure_file.read_bytes() == SECRET
    held = status.json()["holds"]
    assert (held["size"], held["custody"]["depth"]) == (len(SECRET), 1)
    assert held["fingerprint"] == receipt.json()["fingerprint"]
    assert {name: value for name, value in status.json().items() if name != "holds"} == {
        "version": 2,
        "law": {"chain_id": 31337, "operator": OPERATOR.hex(), "contract": CONTRACT.hex()},
        "endpoints": 1,
        "block_tag": "latest",
        "pending": [],
        "answered_requests": 0,
        "receipts": 1,
        "max_receipts": 10000,
        "refusals": [],
        "simulated_root": True,
        "old_forms": False,
        "insecure_endpoints_from_configure": False,
    }
    assert [each["role"] for each in page["receipts"]] == ["genesis", "sent"]
    assert (page["receipts"][1]["receipt"], page["next"]) == (receipt.json(), None)


def test_a_dry_run_judges_and_hands_nothing_over(world: Handover) -> None:
    """It says what would be decided, by the same rules, and leaves neither receipt nor memory."""
    request = world.request()

    with serving(world.old) as old:
        allowed = old.post("/onboard?dry_run=1", content=request)
        world.chain.allowed.clear()
        denied = old.post("/onboard?dry_run=1", content=request)

    assert allowed.json() == {"accepted": True, "block": 1234, "simulated": True}
    assert (denied.status_code, denied.json()["rule"]) == (403, "COMPOSE_HASH")
    assert (world.receipts("old"), world.old.status()["answered_requests"]) == ([], 0)


def test_a_place_that_is_no_number_answers_nothing(world: Handover) -> None:
    """Bad input changes nothing: no receipt is kept for a request whose chunk to begin with is out of form."""
    with serving(world.old) as old:
        for place in ("x", "-1", "1" * 10):
            answer = old.post(f"/onboard?from={place}", content=world.request())
            assert (answer.status_code, answer.json()["error"]) == (400, f"from: want a number, got {place!r}")

    assert world.receipts("old") == []


def test_an_answer_begins_at_any_chunk_and_at_the_end(world: Handover) -> None:
    """From behind the last chunk it is the line alone; what lies further is bad input."""
    request = world.request()
    with serving(world.old) as old:
        whole = old.post("/onboard", content=request)
        line = old.post("/onboard?from=1", content=request)
        beyond = old.post("/onboard?from=2", content=request)

    assert line.content == whole.content[: whole.content.index(b"\n") + 1]
    assert len(whole.content) == len(line.content) + len(SECRET) + 16
    assert (beyond.status_code, beyond.json()["error"]) == (400, "onboard: from: want 0 to 1, got 2")


def test_denial_is_403_and_names_the_rule(world: Handover) -> None:
    """The chain's refusal is told with the rule and the block, and is remembered for whoever asks why."""
    world.chain.allowed.remove(world.new_machine.booted.app_compose.compose_hash)
    request = world.request()

    with serving(world.old) as old:
        denied = old.post("/onboard", content=request)
        status = old.get("/status").json()

    assert denied.status_code == 403
    assert (denied.json()["kind"], denied.json()["rule"], denied.json()["block"]) == (
        "KeyReleaseDeniedError",
        "COMPOSE_HASH",
        1234,
    )
    assert [(each["path"], each["rule"]) for each in status["refusals"]] == [("/onboard", "COMPOSE_HASH")]
    assert status["refusals"][0]["reason"] == denied.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/onboard", b"{}", 400),
        ("/onboard?from=x", b"{}", 400),
        ("/receiveKey", b"{}", 400),
        ("/receiveKey", b"", 400),
        ("/receiveKey?from=-1", b"{}", 400),
        ("/requestKey", b'{"version": 1}', 400),
        ("/receipts", b'{"path": "/etc"}', 400),
        ("/configure", b"x", 400),
    ],
)
def test_malformed_bodies_are_400(world: Handover, path: str, body: bytes, code: int) -> None:
    """A body that is no document is bad input."""
    with serving(world.old) as old:
        answer = old.post(path, content=body)

    assert answer.status_code == code


@pytest.mark.parametrize(
    ("method", "path", "code", "error"),
    [
        ("POST", "/nothing", 404, "path: want one that is served here, got '/nothing'"),
        ("GET", "/docs", 404, "path: want one that is served here, got '/docs'"),
        ("POST", "/onboard/", 404, "path: want one that is served here, got '/onboard/'"),
        ("GET", "/" + "%0a" * 200, 404, "path: want one that is served here, got '/" + r"\n" * 99 + "'"),
        ("GET", "/onboard", 405, "method: want POST, got 'GET'"),
        ("POST", "/status", 405, "method: want GET, got 'POST'"),
    ],
)
def test_what_there_is_not_is_told_as_every_error(
    world: Handover, method: str, path: str, code: int, error: str
) -> None:
    """An unknown path and another verb get `{"error", "kind"}` too; nobody is sent elsewhere."""
    with serving(world.old) as old:
        answer = old.request(method, path, headers={"Host": "elsewhere.example"})

    assert (answer.status_code, answer.json()) == (code, {"error": error, "kind": "InputError"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("allow") == {405: error[13:].partition(",")[0]}.get(code)


def test_silent_chain_is_503(world: Handover) -> None:
    """That the chain could not be asked is told as such, not as a refusal."""
    request = world.request()
    world.chain.reachable = False

    with serving(world.old) as old:
        answer = old.post("/onboard", content=request)

    assert (answer.status_code, answer.json()["kind"]) == (503, "ChainUnavailableError")


def test_content_that_changes_under_way_is_told_by_status(tmp_path: Path, site: Site) -> None:
    """The answer breaks off, for it has begun; the reason is among the last refusals."""
    world = make_handover(tmp_path, site, bytes(32 * CHUNK))
    request = world.request()

    with serving(world.old) as old:
        with old.stream("POST", "/onboard", content=request) as answer:
            pieces = answer.iter_raw()
            next(pieces)
            with (tmp_path / "old" / "secure-file").open("r+b") as content:
                content.write(b"x" * (32 * CHUNK))
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
                list(pieces)
        (refusal,) = old.get("/status").json()["refusals"]

    said = "secure file: it has changed since the answer was made; ask again"
    assert (refusal["path"], refusal["kind"], refusal["reason"]) == ("/onboard", "KeystoreError", said)


def test_configure_is_taken_once(tmp_path: Path, site: Site) -> None:
    """A node without endpoints makes no request until it is configured; other endpoints are refused afterwards."""
    with serving(bare(tmp_path / "bare", site)) as client:
        before = client.post("/requestKey")
        configured = client.post("/configure", json=URLS)
        again = client.post("/configure", json=URLS)
        other = client.post("/configure", json={"rpc_urls": ["http://127.0.0.1:1"]})
        after = client.post("/requestKey")

    assert [each.status_code for each in (before, configured, again, other, after)] == [409, 200, 200, 409, 200]
    assert "no chain endpoint is configured" in before.json()["error"]
    assert "set already" in other.json()["error"]


def test_configure_is_refused_where_the_settings_file_has_endpoints(world: Handover) -> None:
    """Whoever reaches the port cannot replace the endpoints of the settings file."""
    with serving(world.new) as new:
        answer = new.post("/configure", json={"rpc_urls": ["http://127.0.0.1:1"]})

    error = "configure: the endpoints are set in the settings file"
    assert (answer.status_code, answer.json()) == (409, {"error": error, "kind": "HandoverRefusedError"})


@pytest.fixture
def keyed(tmp_path: Path, site: Site) -> Replicator:
    """A node with two containers and a secure file."""
    machine = site.machine(tmp_path / "keyed")
    compose = machine.booted.app_compose.compose_hash
    node = make_node(tmp_path / "keyed", machine, site, MemoryChain({compose}), Clock(), containers=CONTAINERS)
    place_genesis(node)
    return node


def test_each_container_gets_a_key_of_its_own(keyed: Replicator) -> None:
    """The token decides whose key it is; tag and container change it, and it is not the secure file."""
    with serving(keyed) as client:
        keys = [
            client.post("/getkey", json={"tag": tag}, headers={"Authorization": f"Bearer {token}"}).json()["key"]
            for token in (TOKEN, "d" * 40)
            for tag in ("", "disk")
        ]

    assert len(set(keys)) == 4
    assert bytes.fromhex(keys[1]) == keyed.derive_key(CONTAINERS[0], "disk")
    assert SECRET.hex() not in "".join(keys)


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer web", f"bearer {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
def test_a_caller_without_a_token_gets_no_key(keyed: Replicator, header: str | None) -> None:
    """Being on this machine is not enough, and neither is knowing a name."""
    with serving(keyed) as client:
        answer = client.post("/getkey", headers={"Authorization": header} if header else {})

    error = "getkey: want a container's own socket, or its token in the header Authorization"
    assert (answer.status_code, answer.json()) == (409, {"error": error, "kind": "HandoverRefusedError"})


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"name": "db"}, "getkey: unknown member 'name'"),
        ({"container": "db"}, "getkey: unknown member 'container'"),
        ({"tag": "x" * 257}, "getkey: tag: want at most 256 characters, got 257"),
        ({"tag": 1}, "getkey: tag: want a string, got a number"),
    ],
)
def test_a_claimed_name_is_refused(keyed: Replicator, body: dict[str, object], error: str) -> None:
    """A container cannot say that it is another one; tags are bounded."""
    with serving(keyed) as client:
        answer = client.post("/getkey", json=body, headers={"Authorization": f"Bearer {TOKEN}"})

    assert (answer.status_code, answer.json()) == (400, {"error": error, "kind": "MessageMalformedError"})


def test_a_socket_answers_for_its_container_alone(keyed: Replicator, tmp_path: Path) -> None:
    """At a container's own socket nothing but /getkey is there, and it needs no token."""
    container = Container("web", socket=tmp_path / "web.sock")
    with (
        Listener(container_app(keyed, container), unix_socket=container.socket).running(),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(container.socket)), base_url="http://web") as client,
    ):
        key, status = client.post("/getkey", json={"tag": "disk"}), client.get("/status")

    assert bytes.fromhex(key.json()["key"]) == keyed.derive_key(CONTAINERS[0], "disk")
    error = "path: want one that is served here, got '/status'"
    assert (status.status_code, status.json()) == (404, {"error": error, "kind": "InputError"})


def test_refusals_are_bounded_and_on_one_line(world: Handover) -> None:
    """However many refusals there are, the last 20 are kept, and none breaks the line or the page."""
    with serving(world.old) as old:
        for number in range(25):
            old.post("/requestKey", content=json.dumps({f"<b>\x00{number}": 1}))
        status, page = old.get("/status").json(), old.get("/").text

    said = [f"requestKey: unknown member '<b>\\x00{number}'" for number in reversed(range(5, 25))]
    assert [each["reason"] for each in status["refusals"]] == said
    assert "<b>" not in page
    assert [page.count(str(escape(reason))) for reason in said] == [1] * 20


def test_old_forms_say_what_the_original_says_of_itself(world: Handover) -> None:
    """The key and the quote of round 1, and the quote of the genesis where it was made; without old forms nothing."""
    world.new.old_forms = world.old.old_forms = True
    with serving(world.new) as new, serving(world.old) as old:
        before = new.get("/status").json()
        asked = new.post("/requestKey").json()
        after, maker = new.get("/status").json(), old.get("/status").json()
        world.new.old_forms = False
        plain = new.get("/status").json()

    names = ("myPub", "onboard_quote", "bootstrap_quote", "addr", "myKey")
    assert [before[name] for name in names] == [""] * 5
    assert (after["myPub"], after["bootstrap_quote"]) == (asked["pubk"], "")
    assert asked["quote"].startswith(after["onboard_quote"])
    quoted = parse_quote(bytes.fromhex(after["onboard_quote"]))
    assert quoted.report_data == parse_request(bytes.fromhex(asked["quote"]).partition(MARK)[2]).request.report_data()
    held = world.old.around.secure_file.held()
    assert held.custody is not None
    bound = held.custody.genesis.report_data()
    assert parse_quote(bytes.fromhex(maker["bootstrap_quote"])).report_data == bound
    assert (maker["myPub"], maker["onboard_quote"], maker["caller_address"]) == ("", "", "127.0.0.1")
    assert not {*names, "caller_address"} & plain.keys()


def test_pages_of_receipts_are_bounded(world: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends before it grows too large, and the next begins there; one receipt is always given."""
    monkeypatch.setattr(receipts, "PAGE_BYTES", 1)
    world.hand_over()
    with serving(world.old) as old:
        first = old.post("/receipts", json={"evidence": True}).json()
        second = old.post("/receipts", json={"since": first["next"], "evidence": True}).json()
        monkeypatch.undo()
        both = old.post("/receipts", json={"evidence": True}).json()

    assert ([each["role"] for each in first["receipts"]], first["next"]) == (["genesis"], 1)
    assert ([each["role"] for each in second["receipts"]], second["next"]) == (["sent"], None)
    assert both == {"receipts": first["receipts"] + second["receipts"], "next": None}


@pytest.mark.parametrize("content", ["[]", '{"role": "sent"}'])
def test_a_damaged_receipt_is_named(world: Handover, content: str) -> None:
    """A file that is no receipt is an error that says which, not a page without it; one that is moved away is none."""
    damaged = world.folder / "old" / "receipts" / "damaged.json"
    damaged.write_text(content)
    gone = damaged.with_name("gone.json")
    gone.symlink_to(world.folder / "nowhere")
    with serving(world.old) as old:
        answer = old.post("/receipts")
        damaged.unlink()
        healed = old.post("/receipts").json()

    error = "receipts: damaged.json: want a receipt, got something else"
    assert answer.json() == {"error": error, "kind": "KeystoreError"}
    assert [each["role"] for each in healed["receipts"]] == ["genesis"]
