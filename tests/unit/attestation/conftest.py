"""A simulated platform, a fixed moment, and the golden quotes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings

from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters
from dstack.values import Register

# A verification takes milliseconds, but not on every busy machine.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def at() -> datetime:
    """The moment at which everything here is valid."""
    return datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def pki(at: datetime) -> SimulatedPki:
    """A simulated platform, the same in every run."""
    return SimulatedPki.generate(at, seed=b"tests")


@pytest.fixture(scope="session")
def roots(pki: SimulatedPki) -> TrustedRoots:
    """Trust in that platform's maker alone."""
    return TrustedRoots((simulated_root(pki.root_der),))


@pytest.fixture(scope="session")
def registers() -> TdRegisters:
    """Registers that differ from each other."""
    return TdRegisters(*(Register(bytes([n]) * 48) for n in range(1, 6)), mr_config_id=ZERO_REGISTER)


@pytest.fixture(scope="session")
def quotes(project_root: Path) -> Path:
    """The folder of golden quotes."""
    return project_root / "tests" / "vectors" / "quotes"
