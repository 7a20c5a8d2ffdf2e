"""dstack's own SDKs, from PyPI and npm and unmodified, against our guest agent and the keys of our KMS."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dstack_sdk import (
    DstackClient,
    EnvVar,
    encrypt_env_vars_sync,
    verify_env_encrypt_public_key,
    verify_env_encrypt_public_key_legacy,
)

from dstack.attestation.certificates import der_of
from dstack.attestation.quote import parse_quote
from dstack.attestation.ratls import certificate_report_data, evidence_from_certificate
from dstack.guest.agent import GuestAgent
from dstack.guest.app import agent_app
from dstack.guest.boot import Booted
from dstack.keys import decrypt_env, derive_env_key, derive_purpose_key, k256_public_key, verify_signature_chain
from dstack.keys.environment import Variable, parse_environment
from dstack.keys.pem import load_certificate, load_private_key, spki_der
from dstack.transport.listener import Listener
from tests.integration.test_guest_kms import Kms, kms, kms_machine, start
from tests.worlds import APP_ID, Site, root_keys

__all__ = ["kms", "kms_machine"]

SCRIPT = """
const { DstackClient } = require("@phala/dstack-sdk");
const client = new DstackClient(process.argv[1]);
const hex = (bytes) => Buffer.from(bytes).toString("hex");
(async () => {
  const key = await client.getKey("path", "purpose");
  const quote = await client.getQuote("npm");
  const info = await client.info();
  await client.emitEvent("npm event", "payload");
  const tls = await client.getTlsKey({ subject: "npm.example", altNames: ["npm.example"], usageRaTls: true });
  const signed = await client.sign("ed25519", "npm data");
  const verdicts = [];
  for (const data of ["npm data", "other data"]) {
    verdicts.push((await client.verify("ed25519", data, signed.signature, signed.public_key)).valid);
  }
  console.log(JSON.stringify({
    key: hex(key.key),
    chain: key.signature_chain.map(hex),
    quote: quote.quote.replace(/^0x/, ""),
    registers: quote.replayRtmrs(),
    app_id: info.app_id,
    reachable: await client.isReachable(),
    tls: { key: tls.key, chain: tls.certificate_chain },
    signed: { public_key: hex(signed.public_key), chain: signed.signature_chain.map(hex) },
    verdicts,
  }));
})().catch((problem) => { console.error(problem); process.exit(1); });
"""


@dataclass(frozen=True)
class Guest:
    """A booted guest with its agent at a socket."""

    booted: Booted
    kms: Kms
    socket: Path

    def check_key(self, key: bytes, chain: list[bytes]) -> None:
        """The key is that of the path, vouched for by the app's key and that by the KMS's root."""
        assert key == derive_purpose_key(self.booted.provided.keys.k256_key, "path")
        verify_signature_chain(
            self.kms.keys.roots.k256_pubkey,
            APP_ID,
            purpose="purpose",
            public_key=k256_public_key(key),
            chain=(chain[0], chain[1]),
        )

    def check_signing_key(self, public_key: bytes, *chain: bytes) -> None:
        """The chain of a signature: itself, the app key's word for the signing key, the KMS's for the app key."""
        assert len(chain) == 3
        root = self.kms.keys.roots.k256_pubkey
        verify_signature_chain(root, APP_ID, purpose="signing", public_key=public_key, chain=(chain[1], chain[2]))

    def check_certificates(self, key: str, chain: list[str]) -> None:
        """The first is for the key, with evidence bound to it; each is signed by the next, the last is the root."""
        leaf, app_ca, root = map(load_certificate, chain)
        leaf.verify_directly_issued_by(app_ca)
        app_ca.verify_directly_issued_by(root)
        assert spki_der(root) == self.kms.keys.roots.ca_spki
        assert spki_der(leaf) == spki_der(load_private_key(key))
        evidence = evidence_from_certificate(der_of(leaf))
        assert evidence is not None
        assert parse_quote(evidence.quote).report_data == certificate_report_data(der_of(leaf))


@pytest.fixture
def guest(site: Site, kms: Kms, tmp_path: Path) -> Iterator[Guest]:
    """One that has its keys from the KMS."""
    booted, platform = start(site, kms, tmp_path)
    socket = tmp_path / "dstack.sock"
    with Listener(agent_app(GuestAgent(platform, booted)), unix_socket=socket).running():
        yield Guest(booted, kms, socket)


def test_python_sdk(guest: Guest) -> None:
    """Keys, quotes, the agent's account of itself, and events; the SDK's own replay equals the quote."""
    client = DstackClient(str(guest.socket))

    key = client.get_key("path", "purpose")
    guest.check_key(key.decode_key(), [bytes(each) for each in key.decode_signature_chain()])
    client.emit_event("python event", "payload")
    answer = client.get_quote(b"python")
    quote = parse_quote(bytes.fromhex(answer.quote))
    assert quote.report_data == b"python".ljust(64, b"\0")
    assert answer.replay_rtmrs()[3] == quote.body.rtmr3.hex()  # type: ignore[union-attr]
    info = client.info()
    assert (info.app_id, info.tcb_info.rtmr3) == (APP_ID.hex(), quote.body.rtmr3.hex())  # type: ignore[union-attr]
    assert client.is_reachable()
    assert client.version().version == "0.6.0"


@pytest.mark.parametrize("algorithm", ["ed25519", "secp256k1"])
def test_python_sdk_signs_and_verifies(guest: Guest, algorithm: str) -> None:
    """What it has signed verifies, other data does not, and the chain leads to the KMS's root."""
    client = DstackClient(str(guest.socket))

    signed = client.sign(algorithm, "data")

    public_key, signature = signed.decode_public_key(), signed.decode_signature()
    verdicts = [client.verify(algorithm, data, signature, public_key).valid for data in ("data", "other")]
    assert verdicts == [True, False]
    guest.check_signing_key(public_key, *map(bytes, signed.decode_signature_chain()))


def test_python_sdk_gets_a_tls_key(guest: Guest) -> None:
    """With evidence, app info and an end of its own: a key, and a chain under the KMS's root."""
    end = int(datetime.now(UTC).timestamp()) + 3600

    answer = DstackClient(str(guest.socket)).get_tls_key(
        "python.example", ["python.example"], usage_ra_tls=True, not_after=end, with_app_info=True
    )

    guest.check_certificates(answer.key, answer.certificate_chain)
    assert load_certificate(answer.certificate_chain[0]).not_valid_after_utc.timestamp() == end


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_npm_sdk(guest: Guest, project_root: Path) -> None:
    """The same from JavaScript, over the same socket."""
    if not (project_root / "node_modules" / "@phala" / "dstack-sdk").is_dir():
        pytest.skip("@phala/dstack-sdk is not installed: make setup")
    done = subprocess.run(
        ["node", "-e", SCRIPT, str(guest.socket)], cwd=project_root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)

    guest.check_key(bytes.fromhex(said["key"]), [bytes.fromhex(each) for each in said["chain"]])
    quote = parse_quote(bytes.fromhex(said["quote"]))
    assert quote.report_data == b"npm".ljust(64, b"\0")
    assert said["registers"][3] == quote.body.rtmr3.hex()  # type: ignore[union-attr]
    assert (said["app_id"], said["reachable"]) == (APP_ID.hex(), True)
    guest.check_certificates(said["tls"]["key"], said["tls"]["chain"])
    guest.check_signing_key(*(bytes.fromhex(each) for each in (said["signed"]["public_key"], *said["signed"]["chain"])))
    assert said["verdicts"] == [True, False]


ENV_SCRIPT = """
const { verifyEnvEncryptPublicKey } = require("@phala/dstack-sdk/verify-env-encrypt-public-key");
const { encryptEnvVars } = require("@phala/dstack-sdk/encrypt-env-vars");
const [publicKey, signature, appId, timestamp] = process.argv.slice(1);
const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
encryptEnvVars([{ key: "NAME", value: "value é" }], publicKey).then((blob) => console.log(JSON.stringify({
  blob,
  signer: verifyEnvEncryptPublicKey(bytes(publicKey), bytes(signature), appId, BigInt(timestamp)),
})));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_npm_sdk_encrypts_to_our_env_key(kms: Kms, project_root: Path) -> None:
    """The same from JavaScript."""
    if not (project_root / "node_modules" / "@phala" / "dstack-sdk").is_dir():
        pytest.skip("@phala/dstack-sdk is not installed: make setup")
    key = kms.keys.roots.env_key(APP_ID, epoch=0, at=datetime.now(UTC))
    told = (key.public_key.hex(), key.signature_v1.hex(), APP_ID.hex(), str(key.timestamp))

    done = subprocess.run(
        ["node", "-e", ENV_SCRIPT, *told], cwd=project_root, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["signer"].removeprefix("0x") == kms.keys.roots.k256_pubkey.hex()
    plaintext = decrypt_env(derive_env_key(root_keys(kms.keys.roots), APP_ID), bytes.fromhex(said["blob"]))
    assert parse_environment(plaintext) == (Variable("NAME", "value é"),)


def test_python_sdk_encrypts_to_our_env_key(kms: Kms) -> None:
    """It verifies the KMS's word for the key, with a time and without, and what it encrypts the app can read."""
    key = kms.keys.roots.env_key(APP_ID, epoch=0, at=datetime.now(UTC))

    signer = verify_env_encrypt_public_key(key.public_key, key.signature_v1, APP_ID.hex(), key.timestamp)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        older = verify_env_encrypt_public_key_legacy(key.public_key, key.signature, APP_ID.hex())
    assert signer == older == "0x" + kms.keys.roots.k256_pubkey.hex()
    blob = bytes.fromhex(encrypt_env_vars_sync([EnvVar("NAME", "value é")], key.public_key.hex()))
    plaintext = decrypt_env(derive_env_key(root_keys(kms.keys.roots), APP_ID), blob)
    assert parse_environment(plaintext) == (Variable("NAME", "value é"),)
