"""Golden data and one app's facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Load = Callable[[str], Any]


@pytest.fixture(scope="session")
def golden(project_root: Path) -> Load:
    """Read one file of `tests/vectors/measurement`."""
    return lambda name: json.loads((project_root / "tests" / "vectors" / "measurement" / name).read_text())
