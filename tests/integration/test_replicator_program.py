"""The replicator as a program: its first secure file, and its exit codes."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path


def replicator(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [sys.executable, "-m", "replicator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def settings(folder: Path) -> Path:
    """A file with what `bootstrap` needs."""
    path = folder / "replicator.toml"
    path.write_text(
        f'[files]\nsecure_file = "{folder / "secure-file"}"\nreceipts_dir = "{folder / "receipts"}"\n'
        f'[attestation]\ncollateral_dir = "{folder}"\n'
    )
    return path


def test_bootstrap_makes_a_secret_once(tmp_path: Path) -> None:
    """The first call writes 32 bytes for their owner only; a second one is refused and changes nothing."""
    config = settings(tmp_path)

    first = replicator("bootstrap", "-c", str(config))
    made = (tmp_path / "secure-file").read_bytes()
    second = replicator("bootstrap", "-c", str(config))

    assert (first.returncode, len(made)) == (0, 32)
    assert stat.S_IMODE((tmp_path / "secure-file").stat().st_mode) == 0o600
    assert made.hex() not in first.stdout + first.stderr
    assert second.returncode == 1
    assert (tmp_path / "secure-file").read_bytes() == made


def test_settings_that_cannot_be_read_are_exit_code_2(tmp_path: Path) -> None:
    """A missing file is one sentence, and no traceback."""
    done = replicator("-c", str(tmp_path / "nothing.toml"))

    assert done.returncode == 2
    assert "nothing.toml: cannot be read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
