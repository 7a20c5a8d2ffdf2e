"""The page of a replicator: `/status` for people. Self-contained, escaped, no scripts, no secrets."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, Template


def render_page(status: dict[str, Any]) -> str:
    """The page for a node's status."""
    return _template().render(status)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"moment": _moment, "size": _size}
    return environment.from_string(files("replicator").joinpath("page.html").read_text())


def _moment(seconds: int) -> str:
    """Unix seconds for people; a number that is no time stays a number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
