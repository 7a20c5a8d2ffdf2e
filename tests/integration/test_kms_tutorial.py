"""The curl session of dstack's deployment tutorial, run against `python -m kms`; and a second KMS from the first."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.devnet.http import wait_for
from dstack.devnet.programs import Program, Programs, free_port
from dstack.guest.host_shared import InstanceInfo
from dstack.keys.signature_chain import verify_env_public_key
from dstack.values import AppId
from tests.integration.test_kms_program import APP, SECONDS, Around, around, bootstrap, start

__all__ = ["around"]

FILES = {
    "bootstrap-info.json",
    "root-ca.crt",
    "root-ca.key",
    "root-k256.key",
    "rpc-domain",
    "rpc.crt",
    "rpc.key",
    "tmp-ca.crt",
    "tmp-ca.key",
}
pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("openssl") is None, reason="no curl or no openssl here"
)


def curl(*arguments: str) -> str:
    """What curl prints."""
    done = subprocess.run(["curl", "--max-time", "30", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def openssl(*arguments: str) -> str:
    """What openssl prints."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout


def on_one_port(around: Around) -> tuple[Around, int]:
    """As in the tutorial: the same port before and after there are keys."""
    port = free_port()
    changed = re.sub(r"(rpc|onboard)\.port = \d+", rf"\1.port = {port}", around.config.read_text())
    around.config.write_text(changed)
    return replace(around, onboard=f"http://127.0.0.1:{port}", url=f"https://localhost:{port}"), port


def test_tutorial_runs_as_written(around: Around) -> None:
    """GET and POST, with and without `?json` and Content-Type, as the tutorial has them; then TLS on the same port."""
    around, port = on_one_port(around)
    with Programs(around.folder) as programs:
        program = start(programs, around)
        wait_for(f"{around.onboard}/health", program, seconds=SECONDS)

        info = json.loads(curl("-s", f"http://127.0.0.1:{port}/prpc/Onboard.GetAttestationInfo?json"))
        again = curl("-s", "-X", "POST", f"http://127.0.0.1:{port}/prpc/Onboard.GetAttestationInfo?json", "-d", "{}")
        assert json.loads(again) == info
        around.allow("addKmsAggregatedMr", bytes.fromhex(info["mr_aggregated"]))

        bootstrapped = json.loads(
            curl(
                *("-s", "-X", "POST", "-H", "Content-Type: application/json"),
                *("-d", '{"domain": "localhost"}', f"http://127.0.0.1:{port}/prpc/Onboard.Bootstrap?json"),
            )
        )
        assert sorted(bootstrapped) == ["attestation", "ca_pubkey", "k256_pubkey"]
        assert curl("-s", f"http://127.0.0.1:{port}/finish") == "OK"
        wait_for(f"{around.url}/health", program, seconds=SECONDS, verify=False)

        meta = json.loads(curl("-sk", f"https://127.0.0.1:{port}/prpc/KMS.GetMeta"))
        assert (meta["k256_pubkey"], meta["bootstrap_info"]) == (bootstrapped["k256_pubkey"], bootstrapped)
        _check_with_openssl(around.folder / "certs", port, meta["ca_cert"], bootstrapped["ca_pubkey"])
        assert "dstack_kms_requests_total" in curl("-sk", f"https://127.0.0.1:{port}/metrics")

    assert {path.name for path in (around.folder / "certs").iterdir()} >= FILES


def _check_with_openssl(folder: Path, port: int, ca_cert: str, ca_pubkey: str) -> None:
    """Another implementation accepts the certificates on disk and on the wire."""
    assert (folder / "root-ca.crt").read_text() == ca_cert
    assert "OK" in openssl("verify", "-CAfile", str(folder / "root-ca.crt"), str(folder / "rpc.crt"))
    spki = openssl("x509", "-in", str(folder / "root-ca.crt"), "-pubkey", "-noout")
    subject = openssl("x509", "-in", str(folder / "root-ca.crt"), "-noout", "-subject")
    assert subject.replace(" ", "").strip() == "subject=O=Dstack,CN=DstackKMSCA"
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "DER"], input=spki.encode(), capture_output=True, check=True
    ).stdout
    assert der.hex() == ca_pubkey
    shaken = openssl(
        *("s_client", "-connect", f"localhost:{port}", "-CAfile", str(folder / "root-ca.crt")),
        *("-verify_hostname", "localhost", "-verify_return_error"),
    )
    assert "Verify return code: 0 (ok)" in shaken


def test_second_kms_is_the_same_kms(around: Around) -> None:
    """Onboarded from the first over TLS, it derives byte for byte the same keys; neither leaves a trace of them."""
    with Programs(around.folder) as programs:
        first = bootstrap(around, programs)
        second_around = _second(around)
        second = programs.start("second", "kms", "-c", str(second_around.config))
        wait_for(f"{second_around.onboard}/health", second, seconds=SECONDS)
        answer = json.loads(
            curl(
                *("-s", f"{second_around.onboard}/prpc/Onboard.Onboard?json"),
                *("-d", json.dumps({"source_url": around.url, "domain": "localhost"})),
            )
        )
        assert curl("-s", f"{second_around.onboard}/finish") == "OK"
        wait_for(f"{second_around.url}/health", second, seconds=SECONDS, verify=False)
        around.allow_app("addComposeHash", around.site.shared(APP, InstanceInfo()).app_compose.compose_hash)

        keys = [each.guest(name).provided.keys for each, name in ((around, "one"), (second_around, "two"))]
        question = f"prpc/GetAppEnvEncryptPubKey?app_id=0x{'ab' * 20}"
        env_keys = [json.loads(curl("-sk", f"{each.url}/{question}")) for each in (around, second_around)]
        _leaves_no_trace(around, [first, second])

    # Two instances: their disks differ, what belongs to the app does not.
    assert keys[0].k256_key == keys[1].k256_key
    assert keys[0].env_crypt_key == keys[1].env_crypt_key
    assert keys[0].k256_signature == keys[1].k256_signature
    assert env_keys[0]["public_key"] == env_keys[1]["public_key"]
    for key in env_keys:
        raw = {name: bytes.fromhex(key[name]) for name in ("public_key", "signature_v1")}
        verify_env_public_key(
            bytes.fromhex(answer["k256_pubkey"]),
            AppId(b"\xab" * 20),
            raw["public_key"],
            key["timestamp"],
            raw["signature_v1"],
        )
    assert not (around.folder / "certs2" / "bootstrap-info.json").exists()


def _second(around: Around) -> Around:
    """Another KMS on the same machine: its own files and ports."""
    onboard, rpc = free_port(), free_port()
    text = around.config.read_text().replace("/certs", "/certs2")
    text = re.sub(r"rpc\.port = \d+", f"rpc.port = {rpc}", text)
    text = re.sub(r"onboard\.port = \d+", f"onboard.port = {onboard}", text)
    config = around.folder / "second.toml"
    config.write_text(text)
    return replace(around, config=config, onboard=f"http://127.0.0.1:{onboard}", url=f"https://localhost:{rpc}")


def _leaves_no_trace(around: Around, programs: list[Program]) -> None:
    """No root key in what the programs said, logged, were called with or keep beside their keys; and no core."""
    folder = around.folder / "certs"
    scalar = (folder / "root-k256.key").read_bytes()
    lines = [line for name in ("root-ca.key", "rpc.key") for line in (folder / name).read_text().splitlines()[1:-1]]
    needles = [scalar, scalar.hex().encode(), *(line.encode() for line in lines if len(line) > 40)]
    assert len(needles) >= 5
    for program in programs:
        process = Path(f"/proc/{program.process.pid}")
        told = "\n".join(program.said()).encode() + program.log.read_bytes() + (process / "cmdline").read_bytes()
        others = [
            path.read_bytes()
            for path in around.folder.rglob("*")
            if path.is_file() and not {"certs", "certs2"} & set(path.parts) and not path.name.startswith(".")
        ]
        assert not [needle for needle in needles for hay in (told, *others) if needle in hay]
        assert re.search(r"Max core file size\s+0\s+0", (process / "limits").read_text())
