"""Starting programs and making sure that they end."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dstack.errors import ToolUnavailableError

STOP_SECONDS = 5.0
# Ctrl-C, and a polite `kill`.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Program:
    """A running program; its standard output is read line by line, its standard error goes to a log file."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def next_answer(self, timeout: float) -> dict[str, Any]:
        """Read the next line of standard output as a JSON object.

        Raises:
            ToolUnavailableError: None came in *timeout* seconds, or the program ended without one.
        """
        try:
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            raise ToolUnavailableError(f"{self.name}: want an answer within {timeout:.0f} s, got none") from None
        if line is None:
            raise ToolUnavailableError(f"{self.name}: ended early; its log is {self.log}")
        try:
            answer = json.loads(line)
        except ValueError as exc:
            raise ToolUnavailableError(f"{self.name}: want a JSON line, got {line[:80]!r}") from exc
        if not isinstance(answer, dict):
            raise ToolUnavailableError(f"{self.name}: want a JSON object, got {line[:80]!r}")
        return answer

    def said(self) -> list[str]:
        """The lines of standard output that nobody has read yet."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while (line := self.lines.get_nowait()) is not None:
                lines.append(line)
        return lines

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End it: politely, then not."""
        if self.running():
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


class Programs:
    """The programs of one demo; leaving the `with` block ends them, the last one first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for program in reversed(self._started):
            with contextlib.suppress(ProcessLookupError):
                program.stop()

    def start(self, name: str, module: str, *arguments: str) -> Program:
        """Start `python -m module arguments`.

        Ctrl-C in the terminal reaches only the demo, which then ends its programs in order.

        Raises:
            ToolUnavailableError: It cannot be started.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        return self._track(name, [sys.executable, "-m", module, *arguments], log)

    def _track(self, name: str, command: Sequence[str], log: Path) -> Program:
        # Interrupted between its start and its place in the list, it would run on for good.
        with interrupts_later(), log.open("ab") as errors:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    start_new_session=True,
                )
            except OSError as exc:
                raise ToolUnavailableError(f"{name}: cannot be started: {exc.strerror}") from exc
            program = Program(name, process, log)
            self._started.append(program)
            threading.Thread(target=_read_lines, args=(program,), daemon=True).start()
        return program


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """Ctrl-C and a polite `kill` take effect at the end of this block; only the main thread ever sees them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _read_lines(program: Program) -> None:
    assert program.process.stdout is not None
    with program.process.stdout as output:
        for line in output:
            program.lines.put(line)
    program.lines.put(None)


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
