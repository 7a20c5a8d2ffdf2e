"""`python -m kms` itself: its own process, a guest agent at a socket, contracts on a local chain, real time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from dstack.devnet.anvil import Anvil
from dstack.devnet.http import call, wait_for
from dstack.devnet.programs import Program, Programs, free_port
from dstack.errors import KeyReleaseDeniedError, PeerUnavailableError
from dstack.guest.agent import GuestAgent
from dstack.guest.app import agent_app
from dstack.guest.boot import Booted, Surroundings, boot
from dstack.guest.host_shared import InstanceInfo
from dstack.guest.kms_client import KmsTrust, request_app_keys
from dstack.measurement.identities import device_id
from dstack.simulator.os_image import make_image
from dstack.simulator.pccs import Behaviour, pccs_app
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.platform import Defects
from dstack.transport.listener import Listener
from dstack.values import AppId
from kms.decision_log.store import open_store
from kms.decision_log.verification import verify_log
from tests.chain_world import ChainWorld, chain_world
from tests.worlds import CountingRandom, Site, app_compose

APP = app_compose(key_provider="kms")
SECONDS = 30.0


@dataclass(frozen=True)
class Around:
    """Everything around the program: maker and image, contracts, settings file, ports."""

    site: Site
    chain: ChainWorld
    folder: Path
    config: Path
    onboard: str
    url: str

    @property
    def app_id(self) -> AppId:
        """The app whose contract the owner changes at once, without the timelock."""
        return AppId.from_hex(self.chain.own_app_auth.address)

    def allow(self, function: str, value: object) -> None:
        """Change the KMS's contract."""
        self.chain.send(self.chain.owner, self.chain.own_kms_auth, function, value)

    def allow_app(self, function: str, value: object) -> None:
        """Change the app's contract."""
        self.chain.send(self.chain.owner, self.chain.own_app_auth, function, value)

    def guest(self, name: str, defects: Defects | None = None, *, app_id: AppId | None = None) -> Booted:
        """Boot the machine of an app, of `app_id` by default, against the running KMS, whose evidence it demands."""
        now = datetime.now(UTC)
        ask = partial(request_app_keys, trust=KmsTrust(self.site.roots, self.site))
        surroundings = Surroundings(self.site.platform(APP, defects), ask, lambda: now, CountingRandom())
        shared = self.site.shared(APP, InstanceInfo(app_id=app_id or self.app_id), (self.url,))
        (self.folder / name).mkdir()
        return boot(shared, surroundings, work_dir=self.folder / name)


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    """The program's surroundings; the chain allows the machine's image and device, but not yet the KMS."""
    site = Site(SimulatedPki.generate(datetime.now(UTC)), make_image())
    with ExitStack() as stack:
        chain = chain_world(stack.enter_context(Anvil.start()))
        machine = site.machine(tmp_path / "kms-machine", app_compose("kms:1", no_instance_id=True))
        socket = tmp_path / "agent.sock"
        stack.enter_context(
            Listener(agent_app(GuestAgent(machine.platform, machine.booted)), unix_socket=socket).running()
        )
        (tmp_path / "root.der").write_bytes(site.pki.root_der)
        pccs = stack.enter_context(Listener(pccs_app(site.pki, lambda: datetime.now(UTC), Behaviour())).running())
        onboard, rpc = free_port(), free_port()
        config = tmp_path / "kms.toml"
        config.write_text(_settings(tmp_path, chain, onboard, rpc, pccs.port))
        made = Around(site, chain, tmp_path, config, f"http://127.0.0.1:{onboard}", f"https://localhost:{rpc}")
        made.allow("addOsImageHash", site.image.os_image_hash)
        made.allow("addKmsDevice", device_id(site.pki.platform.ppid))
        made.allow("registerApp", chain.own_app_auth.address)
        made.allow_app("addDevice", device_id(site.pki.platform.ppid))
        yield made


def _settings(folder: Path, chain: ChainWorld, onboard: int, rpc: int, pccs: int) -> str:
    return f"""
        rpc.address = "127.0.0.1"
        rpc.port = {rpc}
        [core]
        cert_dir = "{folder}/certs"
        agent_socket = "{folder}/agent.sock"
        onboard.address = "127.0.0.1"
        onboard.port = {onboard}
        image.acpi_tables = "from-log"
        [core.attestation]
        insecure_allow_external_trust_anchors = true
        root_ca.tdx = "{folder}/root.der"
        urls.collateral_dir = "{folder}/collateral"
        urls.pccs = "http://127.0.0.1:{pccs}/sgx/certification/v4"
        [core.auth_api.chain]
        rpc_url = "{chain.chain.rpc_url}"
        kms_contract = "{chain.own_kms_auth.address}"
        chain_id = {chain.deployment.chain_id}
        block_tag = "latest"
        """


def start(programs: Programs, around: Around) -> Program:
    """Start the KMS."""
    return programs.start("kms", "kms", "-c", str(around.config))


def bootstrap(around: Around, programs: Programs) -> Program:
    """Start the KMS, allow it, make its keys, and wait for its TLS service."""
    program = start(programs, around)
    wait_for(f"{around.onboard}/health", program, seconds=SECONDS)
    info = call(f"{around.onboard}/prpc/Onboard.GetAttestationInfo?json", {}).body
    around.allow("addKmsAggregatedMr", bytes.fromhex(info["mr_aggregated"]))
    assert call(f"{around.onboard}/prpc/Onboard.Bootstrap?json", {"domain": "localhost"}).ok
    assert call(f"{around.onboard}/finish").text == "OK"
    wait_for(f"{around.url}/health", program, seconds=SECONDS, verify=False)
    return program


def test_from_the_first_start_to_the_first_keys(around: Around) -> None:
    """Denied, then allowed and bootstrapped, the KMS denies and grants as the contracts say, and logs each decision."""
    with Programs(around.folder) as programs:
        program = start(programs, around)
        wait_for(f"{around.onboard}/health", program, seconds=SECONDS)
        refused = call(f"{around.onboard}/prpc/Onboard.Bootstrap?json", {"domain": "localhost"})
        assert refused.body["error"] == "KMS is not allowed to bootstrap: boot denied: Aggregated MR not allowed"
        assert program.next_answer(SECONDS)["rule"] == refused.body["rule"] == "AGGREGATED_MR"
        program.stop()

        program = bootstrap(around, programs)
        with pytest.raises(KeyReleaseDeniedError, match="App not allowed: Boot denied: Compose hash not allowed"):
            around.guest("before")
        around.allow_app("addComposeHash", around.site.shared(APP, InstanceInfo()).app_compose.compose_hash)
        first = around.guest("first")
        with pytest.raises(KeyReleaseDeniedError, match="App not allowed: step 14: "):
            around.guest("debug", Defects(debug=True))
        program.stop()

        lines = [program.next_answer(SECONDS) for _ in range(6)]
        with closing(open_store(f"sqlite:///{around.folder}/certs/decisions.sqlite3", read_only=True)) as store:
            verified = verify_log(store.entries(), store.vouchers(), store.head())
            kept = [(entry.members()["subject"], entry.members()["decision"]) for entry in store.entries()]
            bound_to = {(entry.members()["chain_id"], entry.members()["kms_contract"]) for entry in store.entries()}
    assert first.provided.keys.k256_signature != b""
    assert kept == [(line["subject"], line["decision"]) for line in lines]
    assert bound_to == {(around.chain.deployment.chain_id, around.chain.own_kms_auth.address)}
    info = json.loads((around.folder / "certs" / "bootstrap-info.json").read_text())
    assert verified.root.hex() == info["k256_pubkey"]
    assert [(line["subject"], line["decision"], line.get("rule")) for line in lines] == [
        ("bootstrap", "granted", None),
        ("self", "granted", None),
        ("app", "denied", "COMPOSE_HASH"),
        ("self", "granted", None),
        ("app", "granted", None),
        ("app", "refused", "QUOTE_UNTRUSTED"),
    ]
    assert "NOT PRODUCTION" in program.log.read_text()


def test_restart_keeps_keys_and_renews_the_certificate(around: Around) -> None:
    """A restarted KMS is the same KMS with a new server certificate, and SIGTERM is a clean end."""
    with Programs(around.folder) as programs:
        program = bootstrap(around, programs)
        before = call(f"{around.url}/prpc/GetMeta?json", {}, verify=False).body
        certificate = (around.folder / "certs" / "rpc.crt").read_bytes()
        program.stop()
        assert program.process.returncode == 0

        key = around.folder / "certs" / "root-k256.key"
        key.chmod(0o644)
        again = start(programs, around)
        wait_for(f"{around.url}/health", again, seconds=SECONDS, verify=False)
        assert key.stat().st_mode & 0o777 == 0o600
        assert "root-k256.key could be opened by others on this machine until now" in again.log.read_text()
        assert call(f"{around.url}/prpc/GetMeta?json", {}, verify=False).body == before
    assert (around.folder / "certs" / "rpc.crt").read_bytes() != certificate


def test_chain_that_goes_down_is_neither_yes_nor_no(around: Around) -> None:
    """When the chain stops answering, a guest is told that the KMS could not ask."""
    with Programs(around.folder) as programs:
        bootstrap(around, programs)
        around.chain.chain.process.kill()
        around.chain.chain.process.wait()

        with pytest.raises(PeerUnavailableError, match="could not ask: "):
            around.guest("late")


def test_start_that_cannot_be_is_refused_by_name(around: Around) -> None:
    """A wrong setting ends with exit code 2; 3 where keys should be made at once and the chain cannot be asked."""
    text = around.config.read_text().replace("[core]", '[core]\nonboard.auto_bootstrap_domain = "localhost"')
    outcomes = []
    for old, new in (
        ("onboard.port", "onboard.prot"),
        (around.chain.own_kms_auth.address, "0x" + "11" * 20),
        (f"chain_id = {around.chain.deployment.chain_id}", "chain_id = 1"),
        (around.chain.chain.rpc_url, "http://127.0.0.1:1"),
        ("[core]", "[core]\nonboard.enabled = false"),
        ("root.der", "absent.der"),
    ):
        around.config.write_text(text.replace(old, new))
        ended = subprocess.run(
            [sys.executable, "-m", "kms", "-c", str(around.config)], capture_output=True, text=True, timeout=SECONDS
        )
        outcomes.append((ended.returncode, ended.stderr.splitlines()[-1]))

    assert [code for code, _ in outcomes] == [2, 2, 2, 3, 2, 2]
    wanted = (
        "did you mean core.onboard.port?",
        "no contract at 0x11",
        "block_tag: want finalized, except on a development chain",
        "127.0.0.1",
        "got none",
        "absent",
    )
    assert [part in line for part, (_, line) in zip(wanted, outcomes, strict=True)] == [True] * len(wanted)


def test_domain_of_the_certificate_alone_makes_no_keys(around: Around) -> None:
    """With `onboard.enabled = false` a folder without keys stops the start, whatever name is set; else it gets keys."""
    text = around.config.read_text().replace("[core]", '[core]\nonboard.auto_bootstrap_domain = "localhost"')
    around.config.write_text(text.replace("[core]", "[core]\nonboard.enabled = false"))
    command = [sys.executable, "-m", "kms", "-c", str(around.config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    left = list((around.folder / "certs").glob("*.key"))

    around.config.write_text(text)
    with Programs(around.folder) as programs:
        program = start(programs, around)
        denied = program.next_answer(SECONDS)
        around.allow("addKmsAggregatedMr", bytes.fromhex(denied["mr_aggregated"]))
        again = start(programs, around)
        wait_for(f"{around.url}/health", again, seconds=SECONDS, verify=False)
        meta = call(f"{around.url}/prpc/GetMeta?json", {}, verify=False).body

    assert (ended.returncode, left) == (2, [])
    assert "want keys, as core.onboard.enabled is false, got none" in ended.stderr
    assert (denied["subject"], denied["rule"]) == ("bootstrap", "AGGREGATED_MR")
    assert meta["bootstrap_info"]["k256_pubkey"] == meta["k256_pubkey"]
