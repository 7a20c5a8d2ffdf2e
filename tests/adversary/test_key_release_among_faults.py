"""Of seven chain endpoints of a KMS one lies, one hangs, one comes and goes: each caller gets what the chain decided.

Whole requests over TLS with RA-TLS certificates, to a KMS that is a program of its own; a small run of what
`make bench` does with 10,000 of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FIGURE = "get_app_key_among_faults"
REQUESTS = 400
DENIALS = 3


@pytest.fixture(scope="module")
def found(project_root: Path) -> dict[str, Any]:
    """What came of one run."""
    environment = {**os.environ, "BENCH_REQUESTS": str(REQUESTS), "BENCH_DENIALS": str(DENIALS)}
    command = [sys.executable, project_root / "scripts" / "bench.py", FIGURE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, f"measuring {FIGURE} ...\n")
    document: dict[str, Any] = json.loads(done.stdout)
    return document[FIGURE]


def test_every_caller_gets_the_chains_answer(found: dict[str, Any]) -> None:
    """Half of the callers get exactly their keys, the others a denial by its rule; nobody is left without an answer."""
    assert (found["requests"], found["wrong"], found["could_not_ask"]) == (REQUESTS, [], 0)
    assert found["right"] == {"granted": REQUESTS // 2, "denied": REQUESTS // 2}


def test_the_endpoints_did_misbehave(found: dict[str, Any]) -> None:
    """The KMS asked its endpoints meanwhile, not its memory alone, and found each of the three at fault."""
    assert found["chain_readings"]["asked"] >= 100
    assert {"lying", "hanging", "killed"} <= set(found["endpoint_faults"])


def test_a_denial_ends_the_grants(found: dict[str, Any]) -> None:
    """Who is denied while asking gets the keys before, a denial by its rule at last, and no third thing."""
    denials = found["denials"]

    assert (denials["denied"], denials["last_answer_is_denial"]) == (DENIALS, DENIALS)
    assert (denials["wrong"], denials["could_not_ask"]) == ([], 0)
    assert min(denials["right"]["granted"], denials["right"]["denied"]) >= DENIALS


def test_an_unknown_figure_is_refused(project_root: Path) -> None:
    """The bench measures nothing when one name is not that of a figure."""
    command = [sys.executable, project_root / "scripts" / "bench.py", FIGURE, "speed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("; got speed\n")
