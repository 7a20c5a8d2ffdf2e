"""A secure file goes from node to node: separate programs, a real chain, real sockets."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from ruamel.yaml import YAML

from dstack.attestation.collateral import serialise_collateral
from dstack.attestation.quote import TdReport, parse_quote
from dstack.chain.deploy import AppPolicy, deploy_app
from dstack.chain.deployment_file import serialise_deployment
from dstack.cli.handover_session import Node as Address
from dstack.cli.handover_session import Session
from dstack.devnet.governance import Governance
from dstack.devnet.handover_steps import genesis_of
from dstack.devnet.programs import Program, Programs, free_port
from dstack.devnet.replicators import Node, bootstrap, start_program, start_replicator, write_settings
from dstack.devnet.transcript import Transcript
from dstack.devnet.world import Machine, World, boot_answer
from dstack.measurement.compose import compose_hash
from dstack.measurement.identities import device_id
from dstack.transport.agent import AgentClient
from dstack.values import AppId, ReportData
from tests.worlds import app_compose

PROJECT = Path(__file__).resolve().parent.parent.parent
OLD, NEW = app_compose("notes:1"), app_compose("notes:2")
LARGE = app_compose("notes:large")

# As people typed it with the original service: the lines of its README and migrate script, in their order.
CURL_SESSION = """
set -eu
cd "$FOLDER"
printf 'ETH_RPC_URL=%s\\n' "$RPC" > host.env
curl -sS -X POST -H "Content-Type: text/plain" --data-binary @host.env $OLD/configure > configured.out
curl -sS -X POST -H "Content-Type: text/plain" -d @host.env $NEW/configure >> configured.out
curl -sS $OLD/status > before.out
curl -s -X POST $NEW/requestKey > request.out
PUBK=$(cat request.out | jq -r .pubk)
QUOTE=$(cat request.out | jq -r .quote)
curl -s -X POST -d "pubk=$PUBK" -d "quote=$QUOTE" $OLD/onboard > onboard.out
curl -sS -X POST -H "Content-Type: text/plain" --data-binary @onboard.out $NEW/receiveKey > loaded.out
curl -sS $NEW/status/ > status.out
"""


@dataclass(frozen=True)
class Place:
    """A chain with contracts, a simulated platform, and where programs are started."""

    world: World
    governance: Governance

    def machine(self, name: str, compose: bytes, app: AppId | None = None) -> Machine:
        """A machine of the app, booted."""
        machine = Machine(name, compose, app_id=app or self.governance.handover_app)
        assert boot_answer(machine.start(self.world))["ready"] is True
        return machine

    def allow(self, compose: bytes, app: AppId | None = None) -> None:
        """Have the owners allow one more compose file, with all of the 48 hours."""
        self.governance.allow_apps({app or self.governance.handover_app: compose_hash(compose)}, self.world)

    def new_app(self) -> AppId:
        """An app of its own, on the machines of this place."""
        policy = AppPolicy(device_id=device_id(self.world.pki.platform.ppid))
        return deploy_app(self.governance.chain.web3, self.governance.anybody, self.governance.deployment, policy)

    def record_genesis(self, node: Node) -> None:
        """Have the owners record what the first node says, with all of the 48 hours."""
        app = node.machine.app_id
        assert app is not None
        proposal = self.governance.propose_genesis(app, genesis_of(node), self.world)
        self.governance.execute_when_ready(proposal, self.world)
        self.refresh()

    def refresh(self) -> None:
        """Statements about the platform as of the chain's present."""
        at = datetime.fromtimestamp(self.governance.chain.web3.eth.get_block("latest")["timestamp"], UTC)
        (self.world.platform / "collateral.json").write_text(serialise_collateral(self.world.pki.collateral(at)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One chain for all tests here; each allows what it needs."""
    folder = tmp_path_factory.mktemp("handover")
    with ExitStack() as cleanup:
        programs = cleanup.enter_context(Programs(folder / "logs"))
        world = World.create(Transcript(io.StringIO(), True, folder), programs, folder / "secret")
        yield Place(world, Governance.deploy(world, cleanup))


def dstack(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `dstack` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "dstack.cli", *words], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_curl_session_of_the_original_runs_unchanged(place: Place, tmp_path: Path) -> None:
    """The lines of the original's README and migrate script hand the secure file over, with a receipt on both sides."""
    if not all(map(shutil.which, ("curl", "jq", "bash"))):
        pytest.skip("no curl, jq or bash here")
    app = place.new_app()
    place.allow(OLD, app)
    place.allow(NEW, app)
    place.refresh()
    forms = "[protocol]\nold_forms = true\n"
    old, new = (
        write_settings(place.world, place.governance, place.machine(name, compose, app), forms)
        for name, compose in (("curl-old", OLD), ("curl-new", NEW))
    )
    bootstrap(place.world, old)
    place.record_genesis(old)
    for node in (old, new):
        text = node.settings.read_text()
        text = re.sub(r"rpc_urls = .*", "insecure_endpoints_from_configure = true", text)
        node.settings.write_text(text)
        start_replicator(place.world, node)
    environment = {"OLD": old.url, "NEW": new.url, "RPC": place.governance.rpc_url, "FOLDER": str(tmp_path)}

    done = subprocess.run(
        ["bash", "-c", CURL_SESSION], env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert new.secure_file.read_bytes() == old.secure_file.read_bytes()
    assert [len(node.receipts()) for node in (old, new)] == [1, 1]
    assert (tmp_path / "loaded.out").read_text() == "Loaded encrypted state"
    status = json.loads((tmp_path / "status.out").read_text())
    assert (status["holds"]["size"], status["caller_address"]) == (32, "127.0.0.1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_is_told_to_end_closes_what_it_opened(place: Place, number: signal.Signals) -> None:
    """The sockets of containers go with it, within seconds; 0 is the code of an end that was wanted, 130 of Ctrl-C."""
    name = f"ends-{number.name.lower()}"
    node = write_settings(place.world, place.governance, place.machine(name, OLD))
    socket = node.folder / "web.sock"
    with node.settings.open("a") as settings:
        settings.write(f'[getkey]\ncontainers = [{{ name = "web", socket = "{socket}" }}]\n')
    program = start_program(place.world, node)
    assert socket.is_socket()

    program.process.send_signal(number)

    assert program.process.wait(20) == {signal.SIGTERM: 0, signal.SIGINT: 130}[number]
    assert not socket.exists()
    assert "Traceback" not in program.log.read_text()


def pasted(place: Place, folder: Path, image: str) -> bytes:
    """The example compose file with this chain's contracts and a version of the app."""
    text = (PROJECT / "replicator" / "docker-compose.yaml").read_text()
    deployment = place.governance.deployment
    text = re.sub(r"rpc_urls = .*", f'rpc_urls = ["{place.governance.rpc_url}"]', text)
    text = text.replace("chain_id = 1", f"chain_id = {deployment.chain_id}\n      block_tag = 'latest'")
    text = re.sub(r'operator = "0x0+"', f'operator = "{deployment.operator}"', text)
    text = re.sub(r'kms_auth = "0x0+"', f'kms_auth = "{deployment.kms_auth}"\n      max_age_seconds = 0', text)
    text = (
        text.replace(
            'collateral_dir = "/var/run/untrustedhost/collateral"',
            'collateral_dir = "/var/run/untrustedhost/collateral"\n      insecure_allow_external_trust_anchors = true'
            '\n      root_ca = "/var/run/untrustedhost/root.der"',
        )
        .replace("captured:/opt/acpi", "from-log")
        .replace("1" * 64, image * 64)
    )
    (folder / f"docker-compose-{image}.yaml").write_text(text)
    out = folder / f"app-compose-{image}.json"
    made = dstack(
        "compose", str(folder / f"docker-compose-{image}.yaml"), "--name", "notes", "--key-provider", "none", "--out",
        str(out),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return out.read_bytes()


def mounted(place: Place, machine: Machine, compose: bytes) -> Node:
    """What the container runtime does: the measured settings, with the paths that are mounted into the container."""
    settings = YAML(typ="safe").load(json.loads(compose)["docker_compose_file"])["configs"]["replicator"]["content"]
    folder = place.world.secret / f"container-{machine.name}"
    (folder / "keys").mkdir(parents=True)
    node = Node(machine, f"http://127.0.0.1:{free_port()}", folder)
    for inside, outside in (
        ("/secure/file", node.secure_file),
        ("/secure/receipts", folder / "receipts"),
        ("/var/run/untrustedhost/collateral", place.world.platform),
        ("/var/run/untrustedhost", place.world.platform),
        ("/run/replicator/app", folder / "keys"),
    ):
        settings = settings.replace(f'"{inside}', f'"{outside}')
    settings = settings.replace('host = "0.0.0.0"', f'host = "127.0.0.1"\nport = {node.url.rpartition(":")[2]}')
    node.settings.write_text(settings + f'[agent]\nsocket = "{machine.socket(place.world)}"\n')
    return node


def container_key(node: Node) -> str:
    """What the app's container gets at its own socket."""
    transport = httpx.HTTPTransport(uds=str(node.folder / "keys" / "getkey.sock"))
    with httpx.Client(transport=transport, base_url="http://replicator") as client:
        return str(client.post("/getkey", json={"tag": "disk"}).json()["key"])


def test_an_app_with_the_replicator_pasted_in_migrates(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by `dstack rtmr3`, refused before its 48 hours, then handed over, and the receipt verifies offline."""
    first, second = pasted(place, tmp_path, "3"), pasted(place, tmp_path, "4")
    place.allow(first)
    place.refresh()
    old = mounted(place, place.machine("pasted-old", first), first)
    new = mounted(place, place.machine("pasted-new", second), second)
    predicted = json.loads(rtmr3(place, tmp_path / "app-compose-4.json", new).stdout)["rtmr3"]
    assert quoted_rtmr3(place, new) == predicted
    asked = place.world.platform / "bootstrap"
    asked.touch()
    start_program(place.world, old)
    place.record_genesis(old)
    # Still there, and the chain has its genesis: the new node makes none.
    start_program(place.world, new)
    assert not new.secure_file.exists()
    asked.unlink()

    before = dstack(
        "handover", old.url, new.url, "--dry-run", "--app-compose", str(tmp_path / "app-compose-3.json"), "--json"
    )
    refused = json.loads(before.stdout)
    assert (before.returncode, refused["accepted"], refused["rule"]) == (1, False, "COMPOSE_HASH")
    assert refused["because"] == [
        f"RTMR3 differs at compose-hash: your file gives {compose_hash(first).hex()}, "
        f"the machine measured {compose_hash(second).hex()}"
    ]

    place.allow(second)
    place.refresh()
    wait_for_a_new_block(old)
    done = dstack("handover", old.url, new.url, "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["handed_over"], facts["depth"]) == (0, True, 1)
    assert new.secure_file.read_bytes() == old.secure_file.read_bytes()
    assert container_key(new) == container_key(old)

    (receipt,) = new.receipts()
    platform = place.world.platform
    offline = ("--collateral", str(platform / "collateral.json"), "--root", str(platform / "root.der"), "--json")
    verified = dstack("handover", "verify", str(receipt), *offline)
    answer = json.loads(verified.stdout)
    assert (verified.returncode, answer["kind"], answer["hash"]) == (0, "handover", facts["receipt"])
    assert answer["receiver"]["compose_hash"] == compose_hash(second).hex()

    (tmp_path / "deployment.json").write_bytes(serialise_deployment(place.governance.deployment, first_block=0))
    (tmp_path / "payer.key").touch(mode=0o600)
    (tmp_path / "payer.key").write_text(place.governance.anybody.key.hex())
    chain = ("--deployment", str(tmp_path / "deployment.json"), "--rpc-url", place.governance.rpc_url, "--json")
    anchored = dstack("handover", "anchor", str(receipt), *chain, "--key-file", str(tmp_path / "payer.key"))
    assert (anchored.returncode, json.loads(anchored.stdout)["receipt"]) == (0, facts["receipt"])
    third = place.machine("pasted-third", pasted(place, tmp_path, "5"))
    waiting = mounted(place, third, third.app_compose)
    start_program(place.world, waiting)
    monkeypatch.setenv("DSTACK_DEPLOYMENT", str(tmp_path / "deployment.json"))
    monkeypatch.setenv("DSTACK_RPC_URL", place.governance.rpc_url)
    never = json.loads(dstack("handover", old.url, waiting.url, "--dry-run", "--json").stdout)
    assert (never["accepted"], never["when"]) == (False, [])
    assert never["because"][-1].startswith("no proposal that waits would change this: ")
    place.governance.propose_app(place.governance.handover_app, compose_hash(third.app_compose), place.world)
    later = json.loads(dstack("handover", old.url, waiting.url, "--dry-run", "--json").stdout)
    assert (later["accepted"], [each["stage"] for each in later["when"]]) == (False, ["Waiting"])

    changed = json.loads(receipt.read_text())
    changed["receipt"]["receiver"]["compose_hash"] = compose_hash(first).hex()
    (tmp_path / "forged.json").write_text(json.dumps(changed))
    forged = dstack("handover", "verify", str(tmp_path / "forged.json"), *offline)
    assert (forged.returncode, json.loads(forged.stdout)["kind"]) == (1, "AppraisalError")


def test_a_large_file_takes_little_memory(place: Place) -> None:
    """Both programs grow by less than 64 MiB while a file of several times that passes through them."""
    app = place.new_app()
    place.allow(LARGE, app)
    place.refresh()
    machines = [place.machine(name, LARGE, app) for name in ("large-old", "large-new")]
    old, new = (write_settings(place.world, place.governance, machine, require_genesis=False) for machine in machines)
    with old.secure_file.open("wb") as content:
        for number in range(160):
            content.write(bytes([number]) * (1 << 20))
    bootstrap(place.world, old, "--adopt")
    programs = [start_program(place.world, node) for node in (old, new)]
    before = [memory(program, "VmRSS") for program in programs]

    session = Session(Address.at(old.url, "old node"), Address.at(new.url, "new node"))
    session.ask()
    session.transfer(lambda _done, _all: None)

    assert new.secure_file.stat().st_size == 160 << 20
    grown = [memory(program, "VmHWM") - least for program, least in zip(programs, before, strict=True)]
    assert max(grown) < 64 << 20, grown


def memory(program: Program, name: str) -> int:
    """Bytes of memory: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(name))


def wait_for_a_new_block(node: Node) -> None:
    """Nodes look for a new block once a second."""
    time.sleep(1.2)
    assert httpx.get(f"{node.url}/status", trust_env=False).status_code == 200


def rtmr3(place: Place, compose: Path, node: Node) -> subprocess.CompletedProcess[str]:
    """What `dstack rtmr3` predicts for the machine of *node*."""
    info = AgentClient(node.machine.socket(place.world)).info()
    done = dstack(
        "rtmr3", str(compose), "--app-id", info.app_id.hex(), "--instance-id", info.instance_id.hex(),
        "--storage-fs", "zfs", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def quoted_rtmr3(place: Place, node: Node) -> str:
    """What the machine of *node* has in its quote."""
    evidence = AgentClient(node.machine.socket(place.world)).evidence(ReportData(bytes(64)))
    report = parse_quote(evidence.quote).body
    assert isinstance(report, TdReport)
    return report.rtmr3.hex()
