"""One chain with the governed contracts for all tests here; each starts from the same state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chain_world import restored
from tests.governed_world import GovernedWorld, governed_chain


@pytest.fixture(scope="session")
def governed_deployed() -> Iterator[GovernedWorld]:
    """UpgradeOperator, KmsAuth and one app."""
    with governed_chain() as world:
        yield world


@pytest.fixture
def governed(governed_deployed: GovernedWorld) -> Iterator[GovernedWorld]:
    """The same, and whatever a test does to it is undone."""
    with restored(governed_deployed.chain):
        yield governed_deployed
