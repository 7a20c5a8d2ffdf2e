"""docs/owners.md: its commands, run as they stand, in their order."""

from __future__ import annotations

import hashlib
import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template

from dstack.devnet.anvil import Anvil
from tests.govern_world import DEVICE, IMAGE, GovernWorld, Run

WAITS = {"sleep-48-hours": 48, "sleep-7-days": 7 * 24}
COMPOSES = {"docker-compose.yaml": "nginx:1", "docker-compose-2.yaml": "nginx:2"}


def test_the_commands_of_the_owners_page_run_as_written(tmp_path: Path, project_root: Path) -> None:
    """From deploy to the last drill, every command succeeds, and the end is what the page says."""
    page = (project_root / "docs" / "owners.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    for name, image in COMPOSES.items():
        (tmp_path / name).write_text(f"services: {{web: {{image: {image}}}}}\n")
    with Anvil.start() as chain:
        world = GovernWorld(chain, tmp_path, project_root)
        settings = _settings(world)
        for command in commands:
            if command in WAITS:
                world.warp(hours=WAITS[command])
                continue
            done = _run(command, world, settings)
            assert done.code == 0, (command, done)
            settings |= _learnt(world, command)
        status = world.govern("status").facts

    assert (status["owner"], status["guardian"]) == (settings["NEW_SAFE"], settings["NEW_GUARDIAN"])
    versions = status["apps"][settings["APP"]]["versions"]
    assert [(version["number"], version["ends_at"]) for version in versions] == [(3, None)]


def _settings(world: GovernWorld) -> dict[str, str]:
    """What the page calls by name."""
    for name in ("payer", "guardian", "new-guardian"):
        world.account(name)
    sunset = datetime.fromtimestamp(world.w3.eth.get_block("latest")["timestamp"], UTC) + timedelta(days=30)
    return {
        "CHAIN_ID": str(world.w3.eth.chain_id),
        "SAFE": world.safe("alice", "bob", "carol"),
        "NEW_SAFE": world.safe("dora", "emil", "fred"),
        "GUARDIAN": world.account("guardian"),
        "NEW_GUARDIAN": world.account("new-guardian"),
        "DEVICE": DEVICE,
        "IMAGE": IMAGE,
        "SUNSET": sunset.isoformat(),
        "FINGERPRINT": "f1" * 32,
        "EVIDENCE": "e1" * 32,
        "RECEIPT": "7e" * 32,
    }


def _run(command: str, world: GovernWorld, settings: dict[str, str]) -> Run:
    """One line of the page, with its variables filled in."""
    program, *arguments = shlex.split(Template(command).substitute(settings))
    assert program == "dstack"
    return world.run(*arguments)


def _learnt(world: GovernWorld, command: str) -> dict[str, str]:
    """What a reader takes from a command's answer."""
    if command.startswith("dstack govern app"):
        return {"APP": next(iter(world.govern("status").facts["apps"]))}
    if command.startswith("dstack govern submit"):
        pending = world.govern("status").facts["pending"]
        return {"ID": pending[-1]["id"]} if pending else {}
    if "second-compose.json" in command and (world.folder / "second-compose.json").exists():
        return {"BAD": hashlib.sha256((world.folder / "second-compose.json").read_bytes()).hexdigest()}
    return {}
