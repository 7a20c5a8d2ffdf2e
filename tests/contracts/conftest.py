"""One anvil for all tests here; each test starts from the same state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dstack.devnet.anvil import Anvil
from tests.chain_world import ChainWorld, chain_world, restored
from tests.governed_world import GovernedWorld, governed_chain


@pytest.fixture(scope="session")
def deployed() -> Iterator[ChainWorld]:
    """A chain with the contracts on it."""
    with Anvil.start() as chain:
        yield chain_world(chain)


@pytest.fixture
def world(deployed: ChainWorld) -> Iterator[ChainWorld]:
    """The same, and whatever a test does to it is undone."""
    with restored(deployed.chain):
        yield deployed


@pytest.fixture(scope="session")
def governed_deployed() -> Iterator[GovernedWorld]:
    """UpgradeOperator, KmsAuth and one app, as an opponent sees them."""
    with governed_chain() as world:
        yield world


@pytest.fixture
def governed(governed_deployed: GovernedWorld) -> Iterator[GovernedWorld]:
    """The same, and whatever a test does to it is undone."""
    with restored(governed_deployed.chain):
        yield governed_deployed


@pytest.fixture(scope="session")
def upstream(project_root: Path) -> Any:
    """Upstream's ABI, as golden data."""
    return json.loads((project_root / "tests/vectors/contracts/upstream.json").read_text())
