"""One simulated site for all attacks."""

from __future__ import annotations

import pytest

from dstack.attestation.evidence import Evidence
from tests.attested_world import AttestedWorld, attested_world
from tests.worlds import Site


@pytest.fixture(scope="session")
def site() -> Site:
    """A simulated platform and an OS image."""
    return Site.make()


@pytest.fixture(scope="session")
def world() -> AttestedWorld:
    """A maker, an image, and a verifier that trusts the maker."""
    return attested_world()


@pytest.fixture(scope="session")
def honest(world: AttestedWorld) -> Evidence:
    """Evidence of an honest machine of that world."""
    return world.evidence(world.events(b"\x01" * 32))
