"""The replicator as a program: exit codes, and one sentence for each error."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.storage import SecureFile

TOML = """
[files]
secure_file = "{folder}/secure-file"
receipts_dir = "{folder}/receipts"
[agent]
socket = "{folder}/agent.sock"
[chain]
rpc_urls = ["http://127.0.0.1:1"]
operator = "0x{operator}"
kms_auth = "0x{contract}"
chain_id = 31337
[attestation]
collateral_dir = "{folder}"
acpi_tables = "from-log"
"""


def replicator(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [sys.executable, "-m", "replicator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def settings(folder: Path) -> Path:
    """A file with all that is required; neither an agent nor a chain is there."""
    path = folder / "replicator.toml"
    path.write_text(TOML.format(folder=folder, operator="0e" * 20, contract="c1" * 20))
    return path


@pytest.mark.parametrize("command", ["serve", "bootstrap"])
def test_a_silent_chain_is_exit_code_3(tmp_path: Path, command: str) -> None:
    """Without a chain nothing starts and nothing is made, and the error is one sentence."""
    done = replicator(command, "-c", str(settings(tmp_path)))

    assert done.returncode == 3
    assert "want 1 of 1 endpoints to agree" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "secure-file").exists()


def test_bootstrap_beside_a_running_service_is_refused(tmp_path: Path) -> None:
    """What another process receives or makes is left alone."""
    SecureFile(tmp_path / "secure-file").hold()
    (tmp_path / "secure-file.incoming.x").write_bytes(b"on its way")

    done = replicator("bootstrap", "-c", str(settings(tmp_path)))

    assert (done.returncode, f"another process works in {tmp_path}" in done.stderr) == (1, True)
    assert (tmp_path / "secure-file.incoming.x").read_bytes() == b"on its way"


def test_settings_that_cannot_be_read_are_exit_code_2(tmp_path: Path) -> None:
    """A missing file is one sentence, and no traceback."""
    done = replicator("-c", str(tmp_path / "nothing.toml"))

    assert done.returncode == 2
    assert "nothing.toml: cannot be read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_who_is_told_to_end_leaves_no_socket(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """SIGTERM is a clean end, Ctrl-C is 130; the containers' sockets are gone after both."""
    socket = tmp_path / "app.sock"
    with serving(tmp_path, f'[[getkey.containers]]\nname = "app"\nsocket = "{socket}"\n') as program:
        assert program.stderr is not None
        said = next(line for line in program.stderr if "listening at" in line or "ERROR" in line)
        there = socket.is_socket()
        program.send_signal(number)
        rest = program.stderr.read()

    assert ("listening at" in said, there) == (True, True)
    assert (program.returncode, socket.exists()) == (code, False)
    assert "Traceback" not in rest


def test_what_is_missing_is_said_at_the_start(tmp_path: Path) -> None:
    """Without a guest agent nothing can be handed over; that is one line, before anybody asks."""
    with serving(tmp_path) as program:
        assert program.stderr is not None
        said = next(line for line in program.stderr if "no handover" in line)
        program.terminate()

    assert "WARNING replicator: no handover before this is mended: " in said
    assert f"{tmp_path}/agent.sock" in said


def serving(folder: Path, more: str = "") -> subprocess.Popen[str]:
    """A program that serves; it has no chain yet."""
    path = settings(folder)
    endpoints = 'rpc_urls = ["http://127.0.0.1:1"]'
    text = path.read_text().replace(endpoints, "insecure_endpoints_from_configure = true")
    path.write_text(f"{text}[http]\nport = 0\n{more}")
    command = [sys.executable, "-m", "replicator", "-c", str(path)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_adopting_is_for_bootstrap(tmp_path: Path) -> None:
    """Whoever serves with --adopt is told that it does nothing there."""
    done = replicator("serve", "--adopt", "-c", str(settings(tmp_path)))

    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "python -m replicator: error: --adopt: want it with bootstrap",
    )


def test_a_plan_left_by_a_crash_that_is_damaged_stops_the_start(tmp_path: Path) -> None:
    """What cannot be repaired is told, not passed over."""
    (tmp_path / "secure-file.custody.next").write_bytes(b"{")

    done = replicator("-c", str(settings(tmp_path)))

    assert (done.returncode, "custody: secure-file.custody.next: not JSON" in done.stderr) == (1, True)
