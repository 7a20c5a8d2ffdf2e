"""Brings this checkout's set-up up to date: `.venv`, Python packages, Node, npm packages, solc.

Only the standard library, because nothing else is there yet. Each step has a stamp inside `.venv` made of
what it depends on; a step whose stamp is unchanged is skipped, and an interrupted step is simply run again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / ".setup"
# The Python that `.venv` is made from, also when this runs inside an activated `.venv`.
BASE_PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
OLDEST_PYTHON = (3, 11)
OLDEST_NODE = 20
# What pip and npm say where nobody answers.
NO_ANSWER = re.compile(
    "NewConnectionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|EAI_AGAIN|ENOTFOUND|ECONNREFUSED"
)


class SetupError(Exception):
    """A step failed; the message is for a person."""


@dataclass(frozen=True)
class Step:
    """One thing to install, what it leaves behind, and the files whose change makes it necessary again."""

    name: str
    hint: str
    result: str
    inputs: Sequence[str]
    run: Callable[[], None]


def main() -> int:
    """Run the steps whose inputs changed; 0 when all is up to date."""
    if sys.version_info < OLDEST_PYTHON:
        sys.stderr.write(
            f"setup: want Python 3.11 or later, got {sys.version.split()[0]}; try make PYTHON=python3.12\n"
        )
        return 2
    try:
        for step in STEPS:
            bring_up_to_date(step)
    except SetupError as exc:
        sys.stderr.write(f"setup: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("setup: interrupted; the next run goes on from here\n")
        return 130
    return 0


def bring_up_to_date(step: Step) -> None:
    """Run *step* unless its stamp says that nothing changed."""
    stamp = STAMPS / step.name
    wanted = fingerprint(step)
    if stamp.is_file() and stamp.read_text() == wanted and (ROOT / step.result).exists():
        return
    sys.stderr.write(f"setup: {step.name} ({step.hint}) ... ")
    sys.stderr.flush()
    began = time.monotonic()
    stamp.unlink(missing_ok=True)
    step.run()
    STAMPS.mkdir(exist_ok=True)
    stamp.write_text(wanted)
    sys.stderr.write(f"{time.monotonic() - began:.0f} s\n")


def fingerprint(step: Step) -> str:
    """What the step's result depends on: this Python, where the checkout lies, and the named files."""
    digest = hashlib.sha256(f"{sys.version}\0{BASE_PYTHON}\0{ROOT}".encode())
    for name in step.inputs:
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


def run(*command: str | Path) -> None:
    """Run a program quietly; on failure show the end of what it said."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        why = "; the package registry cannot be reached, and set-up needs it once" if NO_ANSWER.search(said) else ""
        raise SetupError(f"`{' '.join(str(part) for part in command)}` failed{why}:\n{said}")


def make_venv() -> None:
    """Create `.venv` anew."""
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        run(BASE_PYTHON, "-m", "venv", VENV)
    except SetupError as exc:
        raise SetupError(f"cannot make .venv; on Debian or Ubuntu install python3-venv.\n{exc}") from exc


def install_python_packages() -> None:
    """Install what requirements/ pins, by hash, and this project itself in editable form."""
    pip = (PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    locked = ("--no-build-isolation", "--require-hashes", "-r")
    run(*pip, *locked, "requirements/build.txt")
    run(*pip, *locked, "requirements/all.txt")
    run(*pip, "--no-build-isolation", "-e", ".")


def install_node() -> None:
    """Use the system's Node when it is recent enough, else the one from the Python package index."""
    if system_node_version() < OLDEST_NODE:
        run(PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", "requirements/node.txt")


def system_node_version() -> int:
    """Major version of the Node outside `.venv`, 0 when there is none or it lacks npm."""
    path = os.pathsep.join(part for part in os.environ.get("PATH", "").split(os.pathsep) if str(VENV) not in part)
    node = shutil.which("node", path=path)
    if node is None or shutil.which("npm", path=path) is None:
        return 0
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major = said.strip().removeprefix("v").split(".")[0]
    return int(major) if major.isdigit() else 0


def install_npm_packages() -> None:
    """Install what package-lock.json pins; no package may run a script."""
    os.environ["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError("want npm, got none; run make clean and try again")
    run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def install_solc() -> None:
    """Native solc where it can be had, else the npm build behind a wrapper."""
    run(PYTHON, "scripts/install_solc.py")


STEPS = (
    Step("venv", "a fresh .venv", ".venv/bin/python", (), make_venv),
    Step(
        "python",
        "pinned packages, about a minute when nothing is cached",
        ".venv/bin/dstack",
        ("requirements/build.txt", "requirements/all.txt", "requirements/product.in", "pyproject.toml"),
        install_python_packages,
    ),
    Step("node", "the system's, or a pinned one", ".venv", ("requirements/node.txt",), install_node),
    Step(
        "npm",
        "anvil, forge, OpenZeppelin, Safe, solc",
        "node_modules",
        ("package.json", "package-lock.json"),
        install_npm_packages,
    ),
    Step("solc", "native where reachable", ".solcx", ("package-lock.json", "scripts/install_solc.py"), install_solc),
)


if __name__ == "__main__":
    sys.exit(main())
