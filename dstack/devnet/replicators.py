"""Replicators as programs: their settings, their first secure file, their start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dstack.devnet.governance import Governance
from dstack.devnet.http import wait_for
from dstack.devnet.programs import Program, free_port
from dstack.devnet.world import Machine, World
from dstack.errors import ToolUnavailableError

START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine and the replicator on it; its settings are in `folder`."""

    machine: Machine
    url: str
    folder: Path

    @property
    def settings(self) -> Path:
        """Its settings file."""
        return self.folder / "replicator.toml"

    @property
    def secure_file(self) -> Path:
        """Where it keeps the secure file."""
        return self.folder / "secure-file"

    def receipts(self) -> list[Path]:
        """The receipts of handovers that it keeps."""
        folder = self.folder / "receipts"
        return sorted((*folder.glob("*.sent.json"), *folder.glob("*.received.json")))


def write_settings(
    world: World, governance: Governance, machine: Machine, more: str = "", *, require_genesis: bool = True
) -> Node:
    """A folder with settings for a replicator on *machine*; *more* tables are added as they are."""
    folder = world.secret / f"replicator-{machine.name}"
    folder.mkdir(mode=0o700)
    node = Node(machine, f"http://127.0.0.1:{free_port()}", folder)
    node.settings.write_text(f"""\
[http]
host = "127.0.0.1"
port = {node.url.rpartition(":")[2]}

[files]
secure_file = "{node.secure_file}"
receipts_dir = "{folder / "receipts"}"

[agent]
socket = "{machine.socket(world)}"

[chain]
rpc_urls = ["{governance.rpc_url}"]
operator = "{governance.deployment.operator}"
kms_auth = "{governance.kms_auth}"
chain_id = {governance.deployment.chain_id}
block_tag = "latest"  # a development chain finalizes nothing in time
max_age_seconds = 0  # and its clock is set by hand
require_genesis = {str(require_genesis).lower()}

[attestation]
# NOT PRODUCTION: trusts the simulator's root.
insecure_allow_external_trust_anchors = true
root_ca = "{world.platform / "root.der"}"
collateral_dir = "{world.platform}"
acpi_tables = "from-log"  # the simulator's machines have no tables to look at
{more}""")
    return node


def bootstrap(world: World, node: Node, *words: str) -> None:
    """Have the first node make the secure file.

    Raises:
        ToolUnavailableError: It failed, or takes too long.
    """
    name = f"replicator-{node.machine.name}-bootstrap"
    first = world.programs.start(name, "replicator", "bootstrap", "-c", str(node.settings), *words)
    if first.process.wait(START_SECONDS):
        raise ToolUnavailableError(f"replicator bootstrap failed; its log is {first.log}")


def start_program(world: World, node: Node) -> Program:
    """Start the replicator, and wait until it answers.

    Raises:
        ToolUnavailableError: It does not.
    """
    program = world.programs.start(f"replicator-{node.machine.name}", "replicator", "-c", str(node.settings))
    wait_for(f"{node.url}/status", program, seconds=START_SECONDS)
    return program


def start_replicator(world: World, node: Node) -> Node:
    """As `start_program`; the programs' world ends it."""
    start_program(world, node)
    return node
