"""Groups of sub-commands that are imported when they are asked for, so that the simple ones start fast."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Finds a sub-command by the name of its module."""

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **named: Any) -> None:
        """Take the settings of a group, and *modules*: for each sub-command, the module with its `command`."""
        super().__init__(*arguments, **named)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every sub-command."""
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of *cmd_name* and return its `command`."""
        module = self._modules.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command
