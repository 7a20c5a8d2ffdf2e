"""A simulated machine as a program: what it prints, what it serves, what it keeps, how it ends."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dstack.attestation.appraise import appraise
from dstack.attestation.report_data import padded_report_data
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify import verify_quote
from dstack.measurement.compose import compose_hash
from dstack.measurement.vm_config import serialise_vm_config
from dstack.transport.agent import AgentClient
from tests.worlds import APP_ID, NOW, Site, app_compose

READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Host:
    """A host's folders for one machine."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Where the guest agent listens."""
        return self.folder / "agent.sock"

    def arguments(self, *options: str) -> list[str]:
        """The command line."""
        folders = {"--pki": "pki", "--image": "image", "--host-shared": "shared", "--state": "state"}
        paths = [word for option, name in folders.items() for word in (option, str(self.folder / name))]
        return [sys.executable, "-m", "dstack.simulator", "cvm", *paths, "--socket", str(self.socket), *options]


@pytest.fixture
def host(tmp_path: Path, site: Site) -> Host:
    """A host with a platform, an image, and the files it shares."""
    site.pki.save(tmp_path / "pki")
    site.image.save(tmp_path / "image")
    (tmp_path / "shared").mkdir()
    share(tmp_path, app_compose())
    config = {"kms_urls": [], "vm_config": serialise_vm_config(site.image.vm_config())}
    (tmp_path / "shared" / ".sys-config.json").write_text(json.dumps(config))
    (tmp_path / "shared" / ".instance_info").write_text(json.dumps({"app_id": APP_ID.hex()}))
    return Host(tmp_path)


def share(folder: Path, compose: bytes) -> None:
    """Let the machine in *folder* run *compose*."""
    (folder / "shared" / "app-compose.json").write_bytes(compose)


@contextmanager
def running(host: Host, *options: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """A machine, and the line it printed when it was up."""
    process = subprocess.Popen(host.arguments(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=READY_SECONDS)


def test_machine_serves_evidence_of_what_it_booted(host: Host, site: Site) -> None:
    """The ready line names the app, and the agent's evidence verifies, appraises and says the same."""
    with running(host, "--root-out", str(host.folder / "root.der")) as (ready, _):
        report_data = padded_report_data(b"nonce")
        evidence = AgentClient(host.socket).evidence(report_data)

    roots = TrustedRoots((simulated_root((host.folder / "root.der").read_bytes()),))
    verified = verify_quote(evidence.quote, site.pki.collateral(), roots=roots, at=NOW)
    appraisal = appraise(evidence, verified, expected_report_data=report_data)
    assert ready == {
        "ready": True,
        "app_id": APP_ID.hex(),
        "compose_hash": compose_hash(app_compose()).hex(),
        "instance_id": (appraisal.instance_id or b"").hex(),
        "key_provider": "none",
    }
    assert appraisal.app_id == APP_ID
    assert appraisal.compose_hash == compose_hash(app_compose())


def test_the_app_id_of_the_command_line_counts(host: Host) -> None:
    """An address as it is printed elsewhere replaces what the host's file says; what is none is refused."""
    with running(host, "--app-id", "0xAaAD3C072138f8523FF9890B5c994E332529D1B1") as (ready, _):
        pass

    assert ready["app_id"] == "aaad3c072138f8523ff9890b5c994e332529d1b1"
    code, answer = refused(host, "--app-id", "0xaa")
    assert (code, answer["kind"]) == (2, "InputError")


def test_machine_says_that_it_is_a_simulator_and_ends_on_sigterm(host: Host) -> None:
    """Standard error says NOT PRODUCTION; SIGTERM ends it with its socket removed; state is for its owner only."""
    process = subprocess.Popen(host.arguments(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=READY_SECONDS)

    assert process.returncode == 0
    assert "NOT PRODUCTION" in errors
    assert not host.socket.exists()
    assert stat.S_IMODE((host.folder / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((host.folder / "state" / ".appkeys.json").stat().st_mode) == 0o600


def refused(host: Host, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the line of a machine that does not come up."""
    done = subprocess.run(host.arguments(*options), capture_output=True, text=True, timeout=READY_SECONDS, check=False)
    return done.returncode, json.loads(done.stdout)


def test_bad_compose_file_ends_with_2(host: Host) -> None:
    """A compose file that cannot be read is bad input: one JSON line, exit code 2."""
    share(host.folder, b"services: {}")

    code, answer = refused(host)

    assert (code, answer["kind"]) == (2, "ComposeMalformedError")


def test_no_answering_kms_ends_with_3(host: Host) -> None:
    """A KMS that does not answer is neither yes nor no: exit code 3, and no keys are left."""
    share(host.folder, app_compose(key_provider="kms"))
    config = json.loads((host.folder / "shared" / ".sys-config.json").read_text())
    (host.folder / "shared" / ".sys-config.json").write_text(json.dumps(config | {"kms_urls": ["https://127.0.0.1:1"]}))

    code, answer = refused(host)

    assert (code, answer["kind"]) == (3, "PeerUnavailableError")
    assert not (host.folder / "state" / ".appkeys.json").exists()


def test_programs_make_what_a_machine_needs(tmp_path: Path) -> None:
    """`pki`, `image` and `collateral` write a platform, an image, fresh collateral; keys are for their owner only."""
    simulator = [sys.executable, "-m", "dstack.simulator"]
    subprocess.run([*simulator, "pki", str(tmp_path / "pki")], check=True, capture_output=True)
    image = subprocess.run(
        [*simulator, "image", str(tmp_path / "image"), "--name", "mine"], check=True, capture_output=True, text=True
    )
    out = tmp_path / "collateral.json"
    subprocess.run(
        [*simulator, "collateral", "--pki", str(tmp_path / "pki"), "--out", str(out)], check=True, capture_output=True
    )

    assert json.loads(image.stdout)["os_image_hash"] == (tmp_path / "image" / "digest.txt").read_text()
    assert json.loads(out.read_text()).keys() == json.loads((tmp_path / "pki" / "collateral.json").read_text()).keys()
    for key in (tmp_path / "pki").glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_programs_give_a_machine_its_keys_without_a_kms(tmp_path: Path) -> None:
    """A key provider and two boots: the same keys; another enclave than the listed one is refused, with exit code 1."""
    simulator = [sys.executable, "-m", "dstack.simulator"]
    made = Site.make()
    subprocess.run([*simulator, "pki", str(tmp_path / "pki")], check=True, capture_output=True)
    made.image.save(tmp_path / "image")
    (tmp_path / "shared").mkdir()
    share(tmp_path, app_compose(key_provider="local"))
    config = {"kms_urls": [], "vm_config": serialise_vm_config(made.image.vm_config())}
    (tmp_path / "shared" / ".sys-config.json").write_text(json.dumps(config))
    enclave = "0e" * 32
    provider = subprocess.Popen(
        [*simulator, "key-provider", "--pki", str(tmp_path / "pki"), "--enclave", enclave],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert provider.stdout is not None
        address = json.loads(provider.stdout.readline())["address"]
        kept = []
        for _ in range(2):
            with running(Host(tmp_path), "--key-provider", address, "--enclave", enclave) as (ready, _process):
                assert ready["key_provider"] == "local"
            kept.append(json.loads((tmp_path / "state" / ".appkeys.json").read_text()))
        code, answer = refused(Host(tmp_path), "--key-provider", address, "--enclave", "0f" * 32)
    finally:
        provider.send_signal(signal.SIGTERM)
        provider.communicate(timeout=READY_SECONDS)

    assert provider.returncode == 0
    assert kept[0]["disk_crypt_key"] == kept[1]["disk_crypt_key"]
    assert kept[0]["key_provider"]["Local"]["mr"] == enclave
    assert (code, answer["kind"]) == (1, "QuoteUntrustedError")
