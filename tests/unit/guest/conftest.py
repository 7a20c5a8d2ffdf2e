"""One simulated site for the guest's tests."""

from __future__ import annotations

import pytest

from tests.worlds import Site


@pytest.fixture(scope="session")
def site() -> Site:
    """A simulated platform and an OS image."""
    return Site.make()
