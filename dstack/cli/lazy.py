"""Groups of sub-commands that are imported when they are asked for, so that the simple ones start fast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Finds a sub-command by the name of its module."""

    def __init__(self, *arguments: Any, modules: Mapping[str, tuple[str, str]], **named: Any) -> None:
        """Take the settings of a group, and *modules*: each sub-command's module with its `command`, and a summary."""
        super().__init__(*arguments, **named)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every sub-command."""
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of *cmd_name* and return its `command`."""
        if cmd_name not in self._modules:
            return None
        command = importlib.import_module(self._modules[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries without importing a single sub-command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in sorted(self._modules.items())])
