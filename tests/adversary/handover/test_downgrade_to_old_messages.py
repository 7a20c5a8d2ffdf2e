"""Attack: the messages of the original, which bind nothing and name nobody, where version 2 is wanted."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from dstack.attestation.evidence import parse_evidence
from dstack.attestation.report_data import padded_report_data
from dstack.transport.listener import Listener
from replicator.app import replicator_app
from replicator.old_forms import old_request
from tests.worlds import Handover, Site, make_handover, make_node


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

    assert (answer.status_code, answer.json()["kind"]) == (409, "HandoverRefusedError")
    assert ("bare quote" if old_forms else "protocol.old_forms is off") in answer.json()["error"]
    assert world.receipts("old") == []


@pytest.mark.parametrize("old_forms", [False, True])
def test_a_bare_box_is_not_stored(tmp_path: Path, site: Site, old_forms: bool) -> None:
    """A sealed box of nobody's is refused."""
    world = make_handover(tmp_path, site)

    answer = posted(world, "/receiveKey", b"07" * 100, old_forms=old_forms)

    assert (answer.status_code, answer.json()["kind"]) == (409, "HandoverRefusedError")


def test_the_old_form_is_off_unless_it_is_switched_on(tmp_path: Path, site: Site) -> None:
    """Even around a good request of version 2 the old form is refused by default."""
    world = make_handover(tmp_path, site)
    body = urlencode(old_request(world.new.request_key())).encode()

    off = posted(world, "/onboard", body, old_forms=False)
    on = posted(world, "/onboard", body, old_forms=True)

    assert (off.status_code, on.status_code) == (409, 200)


def test_version_1_of_a_document_is_refused(tmp_path: Path, site: Site) -> None:
    """A document that says it is of another version is malformed, not read as well as it goes."""
    world = make_handover(tmp_path, site)
    request = world.request().replace(b'"version":2', b'"version":1', 1)

    answer = posted(world, "/onboard", request, old_forms=True)

    assert (answer.status_code, answer.json()["error"]) == (400, "request: version: want 2, got 1")
