"""What a person reads where set-up cannot go on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts import install

UNREACHABLE = "failed; the package registry cannot be reached, and set-up needs it once:"


def test_registry_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of pip and npm alike: the first line says what is wrong, before what they said."""
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    nowhere = "http://127.0.0.1:1"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1", f"--index-url={nowhere}")
    npm = ("npm", "view", "none", f"--registry={nowhere}", f"--cache={tmp_path}")

    for command in ((*pip, f"--dest={tmp_path}", "--no-cache-dir", "none"), npm):
        with pytest.raises(install.SetupError) as failure:
            install.run(*command)
        assert str(failure.value).splitlines()[0] == f"`{' '.join(command)}` {UNREACHABLE}"


def test_other_failures_are_not_blamed_on_the_registry() -> None:
    """A program that fails for a reason of its own is shown with what it said, and no guess."""
    command = (sys.executable, "-c", "raise SystemExit('no space left')")

    with pytest.raises(install.SetupError) as failure:
        install.run(*command)

    assert str(failure.value) == f"`{' '.join(command)}` failed:\nno space left"
