"""One chain with the contracts for the attacks that need it; each starts from the same state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chain_world import restored
from tests.law_world import LawWorld, law_world


@pytest.fixture(scope="session")
def law_deployed() -> Iterator[LawWorld]:
    """The contracts, a site that they allow."""
    with law_world() as world:
        yield world


@pytest.fixture
def law(law_deployed: LawWorld) -> Iterator[LawWorld]:
    """The same, and whatever a test does to it is undone."""
    with restored(law_deployed.chain.chain):
        yield law_deployed
        law_deployed.close()
