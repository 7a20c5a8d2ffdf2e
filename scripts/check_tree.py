"""Compares the tree drawn in ARCHITECTURE.md with the tree on disk.

The drawing is the fenced block that begins with ```tree. Two blanks of indentation are one level; a name that ends
in `/` is a folder; what follows two or more blanks is a comment. Of the source folders every module and contract
must be drawn; of the others only the folder itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("contracts/", "scripts/", "dstack/", "kms/", "replicator/")
SOURCE_SUFFIXES = (".py", ".sol")
NOT_DRAWN = ("__init__.py", "py.typed")


def drawn_tree(markdown: str) -> set[str]:
    """Paths of the drawing; folders end in `/`.

    Raises:
        ValueError: There is no drawing, or a line is indented deeper than its parent allows.
    """
    block = re.search(r"^```tree\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)
    if block is None:
        raise ValueError("ARCHITECTURE.md: want a block that begins with ```tree, got none")
    parents: list[str] = []
    paths = set()
    for line in block[1].splitlines():
        if not line.strip():
            continue
        depth, rest = divmod(len(line) - len(line.lstrip(" ")), 2)
        if rest or depth > len(parents):
            raise ValueError(f"ARCHITECTURE.md: want two blanks a level, got {line!r}")
        name = re.split(r"\s{2,}", line.strip())[0]
        del parents[depth:]
        paths.add("".join(parents) + name)
        if name.endswith("/"):
            parents.append(name)
    return paths


def tree_on_disk(files: list[str]) -> set[str]:
    """Paths that must be drawn for the tracked *files*; folders end in `/`."""
    paths = set()
    for name in files:
        folders = name.split("/")[:-1]
        if name.startswith(SOURCE_FOLDERS):
            paths.update("/".join(folders[:depth]) + "/" for depth in range(1, len(folders) + 1))
            if name.endswith(SOURCE_SUFFIXES) and not name.endswith(NOT_DRAWN):
                paths.add(name)
        elif folders and not name.startswith("."):
            paths.add(folders[0] + "/")
    return paths


def tracked_files() -> list[str]:
    """What git tracks or would track here."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in out.splitlines() if (ROOT / name).exists()]


def main() -> int:
    """Print each difference; 0 when there is none."""
    drawn = drawn_tree((ROOT / "ARCHITECTURE.md").read_text())
    actual = tree_on_disk(tracked_files())
    for path in sorted(actual - drawn):
        print(f"on disk, not in ARCHITECTURE.md: {path}")
    for path in sorted(drawn - actual):
        print(f"in ARCHITECTURE.md, not on disk: {path}")
    return int(drawn != actual)


if __name__ == "__main__":
    sys.exit(main())
