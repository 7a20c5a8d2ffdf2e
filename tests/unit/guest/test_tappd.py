"""The legacy guest agent, asked by the official client, by the replicator's, and as its messages are."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256, sha512
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from dstack_sdk import TappdClient as OfficialClient

from dstack.attestation.quote import parse_quote
from dstack.errors import InputError
from dstack.guest.agent import GuestAgent
from dstack.guest.tappd import LegacyAgent, legacy_app
from dstack.keys.derivation import derive_purpose_key
from dstack.keys.pem import load_certificate, load_private_key, p256_scalar, spki_der
from dstack.keys.scalars import k256_public_key
from dstack.keys.signature_chain import purpose_message, recover
from dstack.transport.listener import Listener
from dstack.values import ReportData
from dstack.wire.guest import DeriveK256KeyRequest, DeriveKeyRequest, GetQuoteRequest, TdxQuoteRequest
from replicator.guest_agents import TappdClient
from tests.worlds import APP_ID, NOW, Machine, Site

pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated, please use:DeprecationWarning")


@pytest.fixture
def machine(site: Site, tmp_path: Path) -> Machine:
    """A machine that booted."""
    return site.machine(tmp_path)


@pytest.fixture
def agent(machine: Machine) -> LegacyAgent:
    """Its legacy agent."""
    return LegacyAgent(GuestAgent(machine.platform, machine.booted), machine.booted.provided.keys)


@pytest.fixture
def socket(agent: LegacyAgent, tmp_path: Path) -> Iterator[Path]:
    """Where it listens."""
    path = tmp_path / "tappd.sock"
    with Listener(legacy_app(agent), unix_socket=path).running():
        yield path


def test_a_path_has_one_key(agent: LegacyAgent, machine: Machine) -> None:
    """The same at every call, another for every path, none of today's agent's; its certificate names it."""
    first = agent.derive_key(DeriveKeyRequest(path="/p", subject="app.example", usage_server_auth=True))
    again, other = (agent.derive_key(DeriveKeyRequest(path=path)) for path in ("/p", "/q"))

    key = load_private_key(first.key)
    assert first.key == again.key != other.key
    assert p256_scalar(key) == derive_purpose_key(machine.booted.provided.keys.k256_key, "/p")
    leaf = load_certificate(first.certificate_chain[0])
    assert spki_der(leaf) == spki_der(key)
    assert leaf.subject.rfc4514_string() == "CN=app.example"
    assert first.certificate_chain[-1] == machine.booted.provided.ca_cert_pem


def test_a_random_seed_makes_a_fresh_key(agent: LegacyAgent) -> None:
    """No two are alike, whatever the path."""
    first, second = (agent.derive_key(DeriveKeyRequest(path="/p", random_seed=True)) for _ in range(2))
    assert len({first.key, second.key, agent.derive_key(DeriveKeyRequest(path="/p")).key}) == 3


def test_k256_keys_are_vouched_for(agent: LegacyAgent, machine: Machine) -> None:
    """The app key signs the purpose and the public key."""
    answer = agent.derive_k256_key(DeriveK256KeyRequest("p", "q"))
    app_key = machine.booted.provided.keys.k256_key
    assert answer.k256_key == derive_purpose_key(app_key, "p")
    message = purpose_message("q", k256_public_key(answer.k256_key))
    assert recover(message, answer.k256_signature_chain[0]) == k256_public_key(app_key)


@pytest.mark.parametrize(
    ("request_", "bound", "said"),
    [
        (TdxQuoteRequest(b"x"), sha512(b"app-data:x").digest(), ("sha512", "app-data")),
        (TdxQuoteRequest(b"x", "sha256"), sha256(b"app-data:x").digest() + bytes(32), ("sha256", "app-data")),
        (TdxQuoteRequest(b"x", "", "mine"), sha512(b"mine:x").digest(), ("sha512", "mine")),
        (TdxQuoteRequest(b"\1" * 64, "raw", "mine"), b"\1" * 64, ("raw", "")),
    ],
)
def test_quotes_bind_content_under_a_prefix(
    agent: LegacyAgent, request_: TdxQuoteRequest, bound: bytes, said: tuple[str, str]
) -> None:
    """The digest and the prefix that were used are said."""
    answer = agent.tdx_quote(request_)
    assert parse_quote(bytes.fromhex(answer.quote)).report_data == bound
    assert (answer.hash_algorithm, answer.prefix) == said


def test_what_cannot_be_bound_is_refused(agent: LegacyAgent) -> None:
    """Raw content of another length, and unknown digests."""
    for content in (b"", bytes(63), bytes(65)):
        with pytest.raises(InputError, match="want 64 bytes"):
            agent.raw_quote(GetQuoteRequest(content))
    with pytest.raises(InputError, match=r"want one of sha256, .* or raw, got 'md5'"):
        agent.tdx_quote(TdxQuoteRequest(b"x", "md5"))


def test_the_official_client_is_served(socket: Path, machine: Machine) -> None:
    """Its three calls."""
    client = OfficialClient(str(socket))
    derived = client.derive_key("/p", "subj")
    assert isinstance(load_private_key(derived.key), ec.EllipticCurvePrivateKey)
    assert derived.certificate_chain[-1] == machine.booted.provided.ca_cert_pem
    quote = parse_quote(bytes.fromhex(client.tdx_quote(b"x", "sha256").quote))
    assert quote.report_data == sha256(b"app-data:x").digest() + bytes(32)
    assert client.info().app_id == machine.booted.app_id.hex()


def test_info_is_where_the_npm_client_looks(socket: Path, machine: Machine) -> None:
    """At the root of the legacy socket; no key is to be had there."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
        info, key = (client.post(f"http://tappd/{method}", json={}) for method in ("Info", "DeriveKey"))
    assert info.json()["app_id"] == machine.booted.app_id.hex()
    assert key.json()["error"] == "Service not found: DeriveKey"


def test_the_replicator_takes_its_evidence(socket: Path, site: Site) -> None:
    """What it asks of a legacy agent verifies."""
    wanted = ReportData(b"wanted".ljust(64, b"\0"))
    evidence = TappdClient(socket).evidence(wanted)
    assert site.verifier.appraise(evidence, expected=wanted, at=NOW).app_id == APP_ID
