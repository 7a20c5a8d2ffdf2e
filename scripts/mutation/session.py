"""One session of pytest in a copy of the checkout, in a fork of this process.

What a session imports from others (web3 and its like) takes longer than most tests. So it is imported once, before the
fork; the copy's own modules are imported in the fork alone, and are the copy's.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import eth_abi
import eth_account
import hypothesis
import pytest
import web3

IMPORTED = (eth_abi, eth_account, hypothesis, pytest, web3)
POLL_SECONDS = 0.05
SECONDS_TO_END = 30


def run_pytest(folder: Path, arguments: Sequence[str], *, seconds: float) -> tuple[int | None, str]:
    """Run pytest with *arguments* in *folder*.

    Returns:
        Its exit code, None where it did not end in time, and what it printed.
    """
    output = folder / ".session.txt"
    child = os.fork()
    if child == 0:
        _session(folder, arguments, output)
    code = _wait(child, seconds)
    return code, output.read_text(errors="replace")


def _session(folder: Path, arguments: Sequence[str], output: Path) -> None:
    """The fork: never returns."""
    code = 3
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with output.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path[:] = [str(folder), *(path for path in sys.path if path and not _is_checkout(path))]
        code = int(pytest.main(list(arguments)))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _is_checkout(path: str) -> bool:
    """Whether modules of the checkout itself could be imported from *path*."""
    root = Path(__file__).resolve().parent.parent.parent
    return Path(path).resolve() in (root, root / "scripts")


def _wait(child: int, seconds: float) -> int | None:
    """Its exit code; None, and it is ended, when it takes longer."""
    for patience, last_resort in ((seconds, signal.SIGINT), (SECONDS_TO_END, signal.SIGKILL)):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status) if patience == seconds else None
            time.sleep(POLL_SECONDS)
        # First politely: a session that is interrupted ends the chain that it started.
        os.kill(child, last_resort)
    os.waitpid(child, 0)
    return None
