"""One run of the demo for all who look at it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.worlds import Site

DEMO_SECONDS = 180

# Another real compose file: YAML 1.1 habits, an anchor, a build instead of an image, no digests, non-ASCII text.
OTHER_COMPOSE = """\
version: "3.8"
x-logging: &logging
  driver: json-file
  options: {max-size: "10m"}
services:
  web:
    build: .
    logging: *logging
    ports: ["8080:80"]
    environment:
      GREETING: "Grüße, 你好"
  cache:
    image: redis:7
    logging: *logging
    command: ["redis-server", "--save", ""]
"""


@dataclass(frozen=True)
class DemoRun:
    """What a run of the demo said and left behind."""

    exit_code: int
    entries: list[dict[str, Any]]
    errors: str
    folder: Path

    def refusals(self) -> list[tuple[str, str]]:
        """Who refused by which rule, in order."""
        return [(entry["by"], entry["rule"]) for entry in self.entries if entry["kind"] == "refused"]


def run_demo(folder: Path, *arguments: str) -> DemoRun:
    """Run the demo as a program, in JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "dstack.cli", "demo", "--results", str(folder), "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    return DemoRun(done.returncode, entries, done.stderr, folder)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """A run on a compose file that is not the default one."""
    folder = tmp_path_factory.mktemp("demo")
    compose = folder / "docker-compose.yaml"
    compose.write_text(OTHER_COMPOSE)
    return run_demo(folder / "results", "--compose", str(compose))


@pytest.fixture(scope="session")
def site() -> Site:
    """A simulated platform and an OS image."""
    return Site.make()
