"""Attack: the messages of the original, which bind nothing and name nobody, where version 2 is wanted."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from nacl.public import PublicKey, SealedBox

from dstack.attestation.evidence import parse_evidence
from dstack.attestation.report_data import padded_report_data
from dstack.keys.sealing import TAG_SIZE
from dstack.transport.listener import Listener
from replicator.answers import parse_answer
from replicator.app import replicator_app
from replicator.documents import parse_request
from replicator.old_forms import answer_in_text, old_request
from tests.worlds import LAW, SECRET, Handover, Site, make_handover, make_node

OFF = "protocol.old_forms is off"
BARE_QUOTE = (
    "onboard: quote: want what this service's /requestKey answered, got a bare quote: it binds neither chain nor nonce "
    "nor expiry, and shows no event log"
)
BARE_BOX = "receiveKey: want what this service's /onboard answered, got a bare sealed box: it names no sender"


def old_pair(world: Handover) -> dict[str, str]:
    """A request as the original made it: a key, and a quote over a digest of it."""
    quote = parse_evidence(world.new.identity.quoted(padded_report_data(b"request:key"))).quote
    return {"pubk": "07" * 32, "quote": quote.hex()}


def posted(world: Handover, path: str, body: bytes, *, old_forms: bool) -> httpx.Response:
    """What the old node answers, with or without the old forms."""
    node = make_node(world.folder / "old", world.old_machine, world.site, world.chain, world.clock, old_forms=old_forms)
    with (
        Listener(replicator_app(node)).running() as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", trust_env=False) as client,
    ):
        return client.post(path, content=body)


@pytest.mark.parametrize("old_forms", [False, True])
def test_a_bare_quote_gets_no_secret(tmp_path: Path, site: Site, old_forms: bool) -> None:
    """Whether old forms are taken or not, a request without version 2 inside is refused."""
    world = make_handover(tmp_path, site)

    answer = posted(world, "/onboard", urlencode(old_pair(world)).encode(), old_forms=old_forms)

    error = BARE_QUOTE if old_forms else "onboard: want a document of version 2, got an old form; " + OFF
    assert (answer.status_code, answer.json()) == (409, {"error": error, "kind": "HandoverRefusedError"})
    assert world.receipts("old") == []


@pytest.mark.parametrize("old_forms", [False, True])
def test_a_bare_box_is_not_stored(tmp_path: Path, site: Site, old_forms: bool) -> None:
    """A box that opens with the key of a waiting request, and names no sender, is refused; the request waits on."""
    world = make_handover(tmp_path, site)
    world.new.old_forms = old_forms
    asked = world.new.request_key()
    box = SealedBox(PublicKey(asked.request.public_key)).encrypt(b"the host's secret")

    with (
        Listener(replicator_app(world.new)).running() as listener,
        httpx.Client(base_url=f"http://127.0.0.1:{listener.port}", trust_env=False) as client,
    ):
        answer = client.post("/receiveKey", content=box.hex())
        (waiting,) = client.get("/status").json()["pending"]

    error = BARE_BOX if old_forms else "receiveKey: want an answer of version 2, got an old form; " + OFF
    assert (answer.status_code, answer.json()) == (409, {"error": error, "kind": "HandoverRefusedError"})
    assert (waiting["request"], waiting["stage"]) == (asked.request.hash().hex(), "asked")
    assert (world.new_secure_file.exists(), world.receipts("new")) == (False, [])


def test_the_old_form_is_off_unless_it_is_switched_on(tmp_path: Path, site: Site) -> None:
    """Even around a good request of version 2 the old form is refused by default."""
    world = make_handover(tmp_path, site)
    body = urlencode(old_request(world.new.request_key())).encode()

    off = posted(world, "/onboard", body, old_forms=False)
    on = posted(world, "/onboard", body, old_forms=True)

    error = "onboard: want a document of version 2, got an old form; " + OFF
    assert (off.status_code, off.json()) == (409, {"error": error, "kind": "HandoverRefusedError"})
    line, chunks = answer_in_text(on.content)
    assert (on.status_code, len(chunks)) == (200, len(SECRET) + TAG_SIZE)
    assert [each["hash"] for each in world.receipts("old")] == [parse_answer(line).receipt.hash().hex()]


def test_an_old_request_is_not_made_where_version_2_is_wanted(tmp_path: Path, site: Site) -> None:
    """With the old forms off even an empty body gets the document, which no old script takes for its own."""
    world = make_handover(tmp_path, site)

    answer = posted(world, "/requestKey", b"", old_forms=False)

    assert (answer.status_code, parse_request(answer.content).request.law) == (200, LAW)


def test_version_1_of_a_document_is_refused(tmp_path: Path, site: Site) -> None:
    """A document that says it is of another version is malformed, not read as well as it goes."""
    world = make_handover(tmp_path, site)
    request = world.request().replace(b'"version":2', b'"version":1', 1)

    answer = posted(world, "/onboard", request, old_forms=True)

    assert (answer.status_code, answer.json()["error"]) == (400, "request: version: want 2, got 1")
