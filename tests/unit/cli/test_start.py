"""How commands start: what is slow to load is loaded by those who need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("web3", "httpx", "fastapi", "cryptography", "msgpack", "Crypto", "dcap_qvl", "sqlalchemy", "pydantic", "google")


@pytest.mark.parametrize("command", ["compose_hash", "explain", "measure", "replay", "rtmr3"])
def test_simple_commands_load_no_slow_library(command: str) -> None:
    """Importing the command's module is most of its start; networks, certificates and databases are not in it."""
    program = f"import sys, dstack.cli.main, dstack.cli.{command}; print(*[m for m in {SLOW!r} if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []
