"""The guest agent: what an app can ask, and what it cannot do."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.attestation.appraise import appraise
from dstack.attestation.evidence import parse_evidence
from dstack.attestation.quote import parse_quote
from dstack.attestation.report_data import padded_report_data
from dstack.attestation.verify import verify_quote
from dstack.errors import KeyMalformedError, MessageMalformedError
from dstack.guest.agent import GuestAgent
from dstack.keys.scalars import k256_public_key
from dstack.keys.signature_chain import purpose_message, recover
from dstack.measurement.event_log import parse_event_log, replay_event_log
from dstack.measurement.rtmr3 import SYSTEM_EVENTS
from dstack.wire.guest import (
    EmitEventRequest,
    GetKeyRequest,
    GetQuoteRequest,
    GetTlsKeyRequest,
    SignRequest,
    VerifyRequest,
)
from tests.worlds import APP_ID, NOW, Machine, Site


@pytest.fixture
def machine(site: Site, tmp_path: Path) -> Machine:
    """A machine that booted."""
    return site.machine(tmp_path)


@pytest.fixture
def agent(machine: Machine) -> GuestAgent:
    """Its agent."""
    return GuestAgent(machine.platform, machine.booted)


def test_quote_carries_padded_report_data_and_its_log(agent: GuestAgent) -> None:
    """The quote is over the given bytes and zeros, and the log replays to its registers, digests filled."""
    answer = agent.get_quote(GetQuoteRequest(report_data=b"nonce"))

    quote = parse_quote(answer.quote)
    events = parse_event_log(answer.event_log)
    assert quote.report_data == answer.report_data == b"nonce" + bytes(59)
    assert all(event["digest"] for event in json.loads(answer.event_log))
    assert replay_event_log(events)[3].hex() == json.loads(agent.info().tcb_info)["rtmr3"]


def test_attest_appraises(agent: GuestAgent, site: Site) -> None:
    """The versioned evidence verifies and appraises."""
    evidence = parse_evidence(agent.attest(GetQuoteRequest(report_data=b"nonce")).attestation)

    verified = verify_quote(evidence.quote, site.pki.collateral(), roots=site.roots, at=NOW)

    assert appraise(evidence, verified, expected_report_data=padded_report_data(b"nonce")).app_id == APP_ID


def test_too_long_report_data_is_refused(agent: GuestAgent) -> None:
    """65 bytes are refused, 64 are not."""
    agent.get_quote(GetQuoteRequest(report_data=bytes(64)))

    with pytest.raises(MessageMalformedError, match="Report data is too long"):
        agent.get_quote(GetQuoteRequest(report_data=bytes(65)))


@pytest.mark.parametrize("algorithm", ["", "secp256k1", "k256"])
def test_key_is_vouched_for_by_the_app_key(agent: GuestAgent, machine: Machine, algorithm: str) -> None:
    """The first signature recovers to the app's key; without a KMS nobody vouches for that one."""
    answer = agent.get_key(GetKeyRequest(path="wallet", purpose="mainnet", algorithm=algorithm))

    signer = recover(purpose_message("mainnet", k256_public_key(answer.key)), answer.signature_chain[0])
    assert signer == k256_public_key(machine.booted.provided.keys.k256_key)
    assert answer.signature_chain[1] == b""


def test_key_depends_on_the_path_alone(agent: GuestAgent) -> None:
    """Another path is another key; another purpose or algorithm is not."""
    key = agent.get_key(GetKeyRequest(path="a", purpose="p")).key

    assert agent.get_key(GetKeyRequest(path="a", purpose="q", algorithm="ed25519")).key == key
    assert agent.get_key(GetKeyRequest(path="b", purpose="p")).key != key


def test_unknown_algorithm_is_refused(agent: GuestAgent) -> None:
    """A key for an algorithm nobody knows is not given."""
    with pytest.raises(KeyMalformedError, match="Unsupported algorithm"):
        agent.get_key(GetKeyRequest(path="a", algorithm="rsa"))


def test_event_of_the_app_is_extended(agent: GuestAgent, machine: Machine) -> None:
    """An emitted event is the last of the log, and the next quote is over it."""
    agent.emit_event(EmitEventRequest(event="ledger-opened", payload=b"\x01"))

    last = machine.platform.event_log()[-1]
    assert (last.imr, last.name, last.payload) == (3, "ledger-opened", b"\x01")
    events = parse_event_log(agent.get_quote(GetQuoteRequest()).event_log)
    assert events[-1] == last


@pytest.mark.parametrize("name", ["", "x" * 257, *sorted(SYSTEM_EVENTS)])
def test_system_names_are_not_for_apps(agent: GuestAgent, machine: Machine, name: str) -> None:
    """Empty and overlong names and those of the system are refused, and nothing is extended."""
    before = machine.platform.event_log()

    with pytest.raises(MessageMalformedError, match="event: "):
        agent.emit_event(EmitEventRequest(event=name, payload=b""))

    assert machine.platform.event_log() == before


def test_log_does_not_outgrow_its_readers(agent: GuestAgent, machine: Machine) -> None:
    """An event that would make the log larger than readers take is refused, and nothing is extended."""
    before = machine.platform.event_log()

    with pytest.raises(MessageMalformedError, match="event log is full"):
        agent.emit_event(EmitEventRequest(event="large", payload=bytes(512 * 1024)))

    assert machine.platform.event_log() == before
    parse_event_log(agent.get_quote(GetQuoteRequest()).event_log)


def test_info_says_who_the_guest_is(agent: GuestAgent, machine: Machine, site: Site) -> None:
    """Info names app, instance, compose file and image; its tcb_info holds the whole log and the compose text."""
    info = agent.info()

    tcb_info = json.loads(info.tcb_info)
    assert (info.app_id, info.instance_id, info.app_name) == (APP_ID, machine.booted.instance_id, "notes")
    assert info.os_image_hash == site.image.os_image_hash
    assert info.key_provider_info == '{"name":"none","id":""}'
    assert tcb_info["app_compose"].encode() == machine.booted.app_compose.raw
    assert len(tcb_info["event_log"]) == len(machine.platform.event_log())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_without_a_kms_the_apps_own_root_certifies(machine: Machine, agent: GuestAgent, tmp_path: Path) -> None:
    """OpenSSL accepts the leaf under the root of this boot, for its name; nobody is there to vouch for app info."""
    asked = GetTlsKeyRequest("app.example", ("app.example",), usage_ra_tls=True, usage_server_auth=True)

    leaf, root = agent.get_tls_key(asked).certificate_chain

    (tmp_path / "leaf").write_text(leaf)
    (tmp_path / "root").write_text(root)
    command = ["openssl", "verify", "-purpose", "sslserver", "-CAfile", "root"]
    for name, status in (("app.example", 0), ("other.example", 2)):
        done = subprocess.run([*command, "-verify_hostname", name, "leaf"], cwd=tmp_path, capture_output=True)
        assert done.returncode == status, done.stderr
    assert root == machine.booted.provided.ca_cert_pem
    with pytest.raises(MessageMalformedError, match="with_app_info: want a KMS, which vouches for it"):
        agent.get_tls_key(replace(asked, with_app_info=True))


def test_without_a_kms_nobody_vouches_for_the_app_key(agent: GuestAgent) -> None:
    """The last member of the chain of a signature is empty; the signature itself verifies."""
    signed = agent.sign(SignRequest("ed25519", b"data"))

    assert signed.signature_chain[2] == b""
    assert agent.verify(VerifyRequest("ed25519", b"data", signed.signature, signed.public_key)).valid
