"""Programs of the demo end with it, whenever somebody presses Ctrl-C or kills it politely."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dstack.devnet.programs import INTERRUPTS, Programs


@pytest.mark.parametrize("number", INTERRUPTS)
def test_interrupt_while_a_program_is_started_leaves_none(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes between the start of the process and our knowing it; the process is ended all the same."""
    made: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)
            os.kill(os.getpid(), number)

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    try:
        monkeypatch.setattr(subprocess, "Popen", Interrupted)
        with pytest.raises(KeyboardInterrupt), Programs(tmp_path) as programs:
            programs.start("sleeper", "timeit", "-n", "1", "import time; time.sleep(600)")
        after = signal.getsignal(number)
    finally:
        signal.signal(number, before)

    assert [process.returncode for process in made] == [-signal.SIGTERM]
    assert after is interrupt
