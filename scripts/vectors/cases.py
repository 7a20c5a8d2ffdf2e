"""Files of golden data, taken apart into cases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Tree = dict[str, Any]

WHOLE_FILE = ""
EVERY_LIST = "*"


class AbsentError(Exception):
    """A case lacks a member."""


class ShapeError(Exception):
    """A file or a section is not of a shape that can be read."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case: its members, those of its file, and the folder that file names are relative to."""

    name: str
    members: Tree
    file: Tree
    folder: Path

    @property
    def is_whole_file(self) -> bool:
        """Whether this is the file itself, whose members are only partly a case."""
        return self.members is self.file

    def value(self, path: str) -> Any:
        """The member at *path*.

        `a.b` is member b of member a; `/a` is a member of the file; `@a` is the content (bytes) of the file that
        member a names.

        Raises:
            AbsentError: There is none.
            ShapeError: A file outside the folder is named.
        """
        if path.startswith("@"):
            return self._content(str(self.value(path[1:])))
        tree: Any = self.file if path.startswith("/") else self.members
        for name in path.removeprefix("/").split("."):
            if not isinstance(tree, dict) or name not in tree:
                raise AbsentError(path)
            tree = tree[name]
        return tree

    def has(self, path: str) -> bool:
        """Whether `value` finds something."""
        try:
            self.value(path.removeprefix("@"))
        except AbsentError:
            return False
        return True

    def _content(self, name: str) -> bytes:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ShapeError(f"want a file below {self.folder}, got {name}")
        return path.read_bytes()


def read_file(path: Path) -> Tree:
    """The JSON object in a file; a list is taken as its `cases`.

    Raises:
        ShapeError: There is something else in it.
    """
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise ShapeError(f"not JSON: {exc}") from exc
    if isinstance(tree, list) and tree:
        return {"cases": tree}
    if not isinstance(tree, dict):
        raise ShapeError(f"want an object or a list, got {type(tree).__name__}")
    return tree


def named_sections(tree: Tree, section: str) -> tuple[str, ...]:
    """The sections that one name stands for: `EVERY_LIST` is each list in the file, whatever its name."""
    if section != EVERY_LIST:
        return (section,)
    return tuple(name for name, content in tree.items() if isinstance(content, list))


def section_name(section: str) -> str:
    """The member of the file that a section is."""
    return section.partition("/")[0]


def section_cases(tree: Tree, section: str, folder: Path) -> Iterator[Case]:
    """The cases in one section of a file; none if it lacks the section.

    Args:
        tree: The whole file.
        section: A member that is a list of cases, or one case; `name/*` is an object whose members are cases, each
            seen as its `name` and `value`; `WHOLE_FILE` is the file itself, as one case.
        folder: Where the file is.

    Raises:
        ShapeError: A case is not an object.
    """
    if section == WHOLE_FILE:
        yield Case("file", tree, tree, folder)
    elif section_name(section) in tree:
        for label, members in _labelled(tree[section_name(section)], section):
            if not isinstance(members, dict):
                raise ShapeError(f"{label}: want an object, got {type(members).__name__}")
            yield Case(label, members, tree, folder)


def _labelled(content: Any, section: str) -> list[tuple[str, Any]]:
    name = section_name(section)
    if isinstance(content, list):
        return [(f"{name}[{index}]", members) for index, members in enumerate(content)]
    if section.endswith("/*") and isinstance(content, dict):
        return [(f"{name}.{key}", {"name": key, "value": value}) for key, value in content.items()]
    return [(name, content)]
