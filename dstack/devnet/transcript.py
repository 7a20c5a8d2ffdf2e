"""What the demo says: for a person as lines, for a machine as one JSON object a line; kept in the results folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from dstack.errors import InputError, RefusedError

Fact = str | int | bool | list[str] | None


class DemoFailedError(RefusedError):
    """Something that had to be refused was not, or a value differs from the one computed beforehand."""


@dataclass(slots=True)
class Transcript:
    """Writes each line as it happens, and remembers it.

    Attributes:
        out: Where lines go.
        as_json: One JSON object a line instead of text.
        folder: The results folder; `keep` puts artifacts there.
    """

    out: TextIO
    as_json: bool
    folder: Path
    entries: list[dict[str, Fact]] = field(default_factory=list)
    step_number: int = 0

    def step(self, number: int, title: str) -> None:
        """Begin a step."""
        self.step_number = number
        self._say("step", f"\n{number}. {title}", title=title)

    def did(self, text: str, **facts: Fact) -> None:
        """Report something that was done or seen."""
        self._say("did", f"   {text}", text=text, **facts)

    def proved(self, text: str, **facts: Fact) -> None:
        """Report a comparison or check that held."""
        self._say("proved", f"   [ok] {text}", text=text, **facts)

    def refused(self, what: str, *, by: str, rule: str, reason: str) -> None:
        """Report a refusal that had to come: who refused, which rule decided, in which words."""
        text = f"   [refused] {what}\n             by {by}, rule {rule}: {reason}"
        self._say("refused", text, text=what, by=by, rule=rule, reason=reason)

    def keep(self, name: str, content: bytes | str | dict[str, object] | list[object]) -> Path:
        """Put an artifact into the results folder and return where it lies."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict | list):
            content = json.dumps(content, indent=2) + "\n"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def _say(self, kind: str, line: str, **facts: Fact) -> None:
        entry: dict[str, Fact] = {"step": self.step_number, "kind": kind, **facts}
        self.entries.append(entry)
        self.out.write((json.dumps(entry) if self.as_json else line) + "\n")
        self.out.flush()


def demand(condition: bool, text: str) -> None:
    """Stop the demo when something that must hold does not.

    Raises:
        DemoFailedError: *condition* is false.
    """
    if not condition:
        raise DemoFailedError(text)


def fresh_results_folder(path: Path) -> Path:
    """Make *path* an empty folder for results; only a folder that an earlier demo wrote is emptied.

    Raises:
        InputError: It is not a folder, not writable, or holds files of somebody else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()) and not (path / MARK).is_file():
            raise InputError(f"{path}: want an empty folder or one that a demo wrote, got other files")
        _empty(path)
        (path / MARK).write_text("Results of `dstack demo`; the next run replaces them.\n")
    except OSError as exc:
        raise InputError(f"{path}: cannot hold results: {exc.strerror}") from exc
    return path


MARK = ".dstack-demo"


def _empty(folder: Path) -> None:
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files:
            (Path(root) / name).unlink()
        for name in folders:
            child = Path(root) / name
            child.unlink() if child.is_symlink() else child.rmdir()
