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

from dstack.attestation.quote import parse_quote
from dstack.guest.agent import GuestAgent
from dstack.guest.app import agent_app
from dstack.guest.boot import Booted
from dstack.keys import decrypt_env, derive_env_key, derive_purpose_key, k256_public_key, verify_signature_chain
from dstack.keys.environment import Variable, parse_environment
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
  console.log(JSON.stringify({
    key: hex(key.key),
    chain: key.signature_chain.map(hex),
    quote: quote.quote.replace(/^0x/, ""),
    registers: quote.replayRtmrs(),
    app_id: info.app_id,
    reachable: await client.isReachable(),
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
