"""Golden data about keys, and keys that protect nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dstack.keys.derivation import RootKeys
from dstack.values import AppId

AT = datetime(2026, 1, 3, tzinfo=UTC)


@pytest.fixture(scope="session")
def golden(project_root: Path) -> Any:
    """Loads a file of golden data by its name."""
    return lambda name: json.loads((project_root / "tests" / "vectors" / "kms" / f"{name}.json").read_bytes())


@pytest.fixture
def roots() -> RootKeys:
    """Two root keys."""
    return RootKeys(ca=bytes(31) + b"\x07", k256=bytes(31) + b"\x09")


@pytest.fixture
def app_id() -> AppId:
    """Some app."""
    return AppId(bytes(range(20)))


@pytest.fixture
def at() -> datetime:
    """A fixed moment."""
    return AT
