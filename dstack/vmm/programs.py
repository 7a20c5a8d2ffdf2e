"""Programs of the auditor's choice, bounded in time and output, and ended together with whatever they started."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from dstack.errors import ToolUnavailableError


def start(
    argv: Sequence[str], *, stdin: int, stderr: int, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program as the leader of a group of its own, its output being a pipe.

    Raises:
        ToolUnavailableError: It cannot be started.
    """
    try:
        return subprocess.Popen(
            argv, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
    except (OSError, ValueError) as exc:
        reason = exc.strerror or exc if isinstance(exc, OSError) else exc
        raise ToolUnavailableError(f"{argv[0]}: cannot be started: {reason}") from exc


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and its group: a child that lives on would hold its output open."""
    # Its number is its own until it has been waited for.
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def bounded_output(
    argv: Sequence[str], *, limit: int, seconds: float, environment: Mapping[str, str] | None = None
) -> bytes:
    """Run a program, and give what it printed.

    Args:
        argv: Program and arguments; no shell reads them.
        limit: Most bytes that it may print.
        seconds: How long it may run.
        environment: All of it; None for ours.

    Raises:
        ToolUnavailableError: It cannot be started, failed, printed more, or ran too long.
    """
    process = start(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, environment=environment)
    assert process.stdout is not None
    killer = threading.Timer(seconds, end, [process])
    killer.start()
    try:
        output = process.stdout.read(limit + 1)
        if len(output) > limit:
            raise ToolUnavailableError(f"{argv[0]}: want at most {limit} bytes, got more")
        code = process.wait()
    finally:
        killer.cancel()
        end(process)
        close(process.stdout)
        process.wait()
    if code:
        raise ToolUnavailableError(f"{argv[0]}: failed with exit code {code}")
    return output


def close(stream: IO[bytes] | None) -> None:
    """Close a pipe whose other side may be gone."""
    if stream is not None:
        try:
            stream.close()
        except BrokenPipeError:
            return
