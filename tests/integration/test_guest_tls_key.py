"""GetTlsKey, Sign and Verify of a guest whose keys are a KMS's, in both encodings; OpenSSL checks the certificates."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from cryptography.x509 import DNSName, IPAddress, SubjectAlternativeName

from dstack.attestation.app_info import parse_app_info
from dstack.attestation.appraise import appraise
from dstack.attestation.certificates import der_of
from dstack.attestation.ratls import certificate_report_data, evidence_from_certificate
from dstack.attestation.verify import verify_quote
from dstack.errors import PeerUnavailableError
from dstack.guest.agent import GuestAgent
from dstack.guest.app import agent_app
from dstack.guest.boot import Booted
from dstack.keys import verify_signature_chain
from dstack.keys.certs import OID_APP_INFO, certificate_payload
from dstack.keys.pem import load_certificate, load_private_key, spki_der
from dstack.measurement.vm_config import serialise_vm_config
from dstack.transport.listener import Listener
from dstack.wire.guest import (
    GetTlsKeyRequest,
    GetTlsKeyResponse,
    SignRequest,
    SignResponse,
    VerifyRequest,
    VerifyResponse,
)
from dstack.wire.message import from_json, from_protobuf, to_json, to_protobuf
from tests.integration.test_guest_kms import Kms, kms, kms_machine, running_kms, start
from tests.worlds import APP_ID, NOW, Machine, Site

__all__ = ["kms", "kms_machine"]

NAMES = ("app.example", "127.0.0.1")
WISHES = GetTlsKeyRequest("app.example", NAMES, usage_ra_tls=True, usage_server_auth=True, with_app_info=True)


@dataclass(frozen=True)
class Guest:
    """A guest that is up, with its agent at a TCP port."""

    booted: Booted
    url: str
    kms: Kms

    def ask(self, method: str, request: object, answer: type, *, as_json: bool) -> object:
        """Call in JSON or in protobuf, as an app does."""
        if as_json:
            headers = {"content-type": "application/json"}
            reply = httpx.post(f"{self.url}/{method}", content=to_json(request), headers=headers)
            assert reply.status_code == 200, reply.text
            return from_json(answer, reply.content)
        reply = httpx.post(f"{self.url}/{method}", content=to_protobuf(request))
        assert reply.status_code == 200, reply.text
        return from_protobuf(answer, reply.content)

    def error(self, method: str, request: object) -> tuple[int, str]:
        """Status and text of a refusal."""
        reply = httpx.post(f"{self.url}/{method}?json", content=to_json(request))
        return reply.status_code, reply.json()["error"]


@pytest.fixture
def guest(site: Site, kms: Kms, tmp_path: Path) -> Iterator[Guest]:
    """One that has its keys from the KMS."""
    booted, platform = start(site, kms, tmp_path)
    with Listener(agent_app(GuestAgent(platform, booted))).running() as listener:
        yield Guest(booted, f"http://127.0.0.1:{listener.port}", kms)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_accepts_the_chain(guest: Guest, tmp_path: Path, as_json: bool) -> None:
    """Leaf, app CA, root: for a server, by both names, under the KMS's root; and for nothing else."""
    answer = guest.ask("GetTlsKey", WISHES, GetTlsKeyResponse, as_json=as_json)
    assert isinstance(answer, GetTlsKeyResponse)
    leaf, app_ca, root = answer.certificate_chain
    for name, pem in (("leaf", leaf), ("app-ca", app_ca), ("root", root)):
        (tmp_path / name).write_text(pem)

    def verifies(*arguments: str, purpose: str = "sslserver", untrusted: str = "app-ca") -> bool:
        command = ["openssl", "verify", "-attime", str(int(NOW.timestamp())), "-purpose", purpose]
        command += ["-CAfile", "root", "-untrusted", untrusted, *arguments, "leaf"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert spki_der(load_certificate(root)) == spki_der(load_certificate(guest.kms.keys.root_ca_pem))
    assert spki_der(load_private_key(answer.key)) == spki_der(load_certificate(leaf))
    assert verifies("-verify_hostname", "app.example")
    assert verifies("-verify_ip", "127.0.0.1")
    assert not verifies("-verify_hostname", "other.example")
    assert not verifies(purpose="sslclient")
    assert not verifies(untrusted="root")


def test_the_certificate_carries_what_was_asked_for(guest: Guest, site: Site) -> None:
    """Names, times, evidence that is bound to the new key, and app info as the KMS has verified it."""
    begin, end = int(NOW.timestamp()), int(NOW.timestamp()) + 3600
    wishes = replace(WISHES, usage_client_auth=True, not_before=begin, not_after=end)

    answer = guest.ask("GetTlsKey", wishes, GetTlsKeyResponse, as_json=True)

    assert isinstance(answer, GetTlsKeyResponse)
    leaf = load_certificate(answer.certificate_chain[0])
    der = der_of(leaf)
    names = leaf.extensions.get_extension_for_class(SubjectAlternativeName).value
    assert names.get_values_for_type(DNSName) == ["app.example"]
    assert [str(each) for each in names.get_values_for_type(IPAddress)] == ["127.0.0.1"]
    assert (leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()) == (begin, end)
    evidence = evidence_from_certificate(der)
    assert evidence is not None
    verified = verify_quote(evidence.quote, site.pki.collateral(), roots=site.roots, at=NOW)
    config = serialise_vm_config(site.image.vm_config())
    appraisal = appraise(evidence, verified, expected_report_data=certificate_report_data(der), vm_config=config)
    assert appraisal.app_id == APP_ID
    info = parse_app_info(certificate_payload(leaf, OID_APP_INFO) or b"")
    assert (info.app_id, info.instance_id, info.device_id) == (APP_ID, guest.booted.instance_id, appraisal.device_id)


def test_two_calls_give_two_keys(guest: Guest) -> None:
    """Every key is drawn anew, and without wishes the certificate has no evidence, names or purposes."""
    answers = [guest.ask("GetTlsKey", GetTlsKeyRequest(), GetTlsKeyResponse, as_json=True) for _ in range(2)]

    assert len({each.key for each in answers}) == 2  # type: ignore[attr-defined]
    plain = load_certificate(answers[0].certificate_chain[0])  # type: ignore[attr-defined]
    assert evidence_from_certificate(der_of(plain)) is None
    assert certificate_payload(plain, OID_APP_INFO) is None


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        (GetTlsKeyRequest(not_before=5, not_after=5), "not_before must be earlier than not_after"),
        (GetTlsKeyRequest(alt_names=("a",) * 101), "alt_names: want at most 100, got 101"),
        (GetTlsKeyRequest(alt_names=("a b",)), "subject_alt_names: want a DNS name or an IP address, got 'a b'"),
        (GetTlsKeyRequest(subject="a" * 65), "subject: want at most 64 bytes, got 65"),
    ],
)
def test_wishes_that_no_certificate_can_hold_are_refused(guest: Guest, wishes: GetTlsKeyRequest, error: str) -> None:
    """By the guest, or by the KMS in the same words."""
    assert guest.error("GetTlsKey", wishes) == (400, error)


def test_an_app_that_the_chain_forbids_meanwhile_gets_no_certificate(guest: Guest) -> None:
    """The KMS asks the chain for every certificate, and the app is told the reason."""
    hashes = set(guest.kms.chain.allowed)
    guest.kms.chain.allowed.discard(guest.booted.app_compose.compose_hash)
    try:
        refused = guest.error("GetTlsKey", GetTlsKeyRequest())
    finally:
        guest.kms.chain.allowed.update(hashes)

    assert refused == (400, "Certificate not allowed: Boot denied: Compose hash not allowed")


def test_another_kms_at_the_same_place_is_not_believed(
    site: Site, kms: Kms, kms_machine: Machine, tmp_path: Path
) -> None:
    """A KMS with another root than the one this guest measured certifies nothing for it."""
    booted, platform = start(site, kms, tmp_path)
    with running_kms(site, kms_machine) as other:
        provider = replace(booted.provided.provider, url=other.url)  # type: ignore[type-var]
        moved = replace(booted, provided=replace(booted.provided, provider=provider))
        agent = GuestAgent(platform, moved)
        with pytest.raises(PeerUnavailableError, match=r"SignCert: no answer: .*certificate verify failed"):
            agent.get_tls_key(GetTlsKeyRequest())


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("algorithm", ["", "k256", "secp256k1", "secp256k1_prehashed", "ed25519"])
def test_what_the_guest_signs_verifies_up_to_the_kms(guest: Guest, algorithm: str, as_json: bool) -> None:
    """Data signature, the app key's word for the signing key, the KMS's for the app key; a changed byte fails."""
    data = sha256(b"data").digest()

    signed = guest.ask("Sign", SignRequest(algorithm, data), SignResponse, as_json=as_json)
    assert isinstance(signed, SignResponse)
    asked = VerifyRequest(algorithm, data, signed.signature, signed.public_key)
    verdicts = [
        guest.ask("Verify", each, VerifyResponse, as_json=as_json)
        for each in (
            asked,
            replace(asked, data=sha256(b"other").digest()),
            replace(asked, signature=bytes([signed.signature[0] ^ 1]) + signed.signature[1:]),
            replace(asked, signature=b""),
        )
    ]

    assert verdicts == [VerifyResponse(True), VerifyResponse(False), VerifyResponse(False), VerifyResponse(False)]
    assert (len(signed.signature), signed.signature_chain[0]) == (64, signed.signature)
    verify_signature_chain(
        guest.kms.keys.roots.k256_pubkey,
        APP_ID,
        purpose="signing",
        public_key=signed.public_key,
        chain=(signed.signature_chain[1], signed.signature_chain[2]),
    )


@pytest.mark.parametrize(
    ("method", "request_", "error"),
    [
        ("Sign", SignRequest("rsa", b"data"), "Unsupported algorithm"),
        ("Verify", VerifyRequest("rsa", b"data", bytes(64), bytes(33)), "Unsupported algorithm"),
        (
            "Sign",
            SignRequest("secp256k1_prehashed", b"data"),
            "Pre-hashed signing requires a 32-byte digest, but received 4 bytes",
        ),
        (
            "Verify",
            VerifyRequest("secp256k1", b"data", bytes(64), b"?"),
            "secp256k1 public key: not a point of the curve in SEC1 form",
        ),
        ("Verify", VerifyRequest("ed25519", b"data", bytes(64), b"?"), "Ed25519 public key: want 32 bytes, got 1"),
    ],
)
def test_what_cannot_be_signed_or_verified_is_an_error(guest: Guest, method: str, request_: object, error: str) -> None:
    """Neither a signature nor a verdict."""
    assert guest.error(method, request_) == (400, error)
