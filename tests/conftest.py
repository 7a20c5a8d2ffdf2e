"""What every test may ask for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APE_TESTS = ROOT / "tests" / "ape"
RUN_BY_APE = Path(sys.argv[0]).name == "ape"


def pytest_configure(config: pytest.Config) -> None:
    """A warning is a failure, except in ape, which warns by itself."""
    if not RUN_BY_APE:
        config.addinivalue_line("filterwarnings", "error")
        # httpcore leaves the unix socket of a failed connection to the garbage collector.
        config.addinivalue_line("filterwarnings", r"ignore:unclosed <socket\.socket fd=\d+, family=1,:ResourceWarning")
        # web3 imports a module that websockets is about to drop.
        config.addinivalue_line("filterwarnings", "ignore:websockets.legacy is deprecated:DeprecationWarning")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """`ape test` runs what is written for ape; pytest runs everything else."""
    is_for_ape = APE_TESTS in (collection_path, *collection_path.parents)
    return True if collection_path != APE_TESTS.parent and is_for_ape != RUN_BY_APE else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option of our own."""
    parser.addoption("--rewrite-gas", action="store_true", help="write what tests/contracts/test_gas.py measures")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_vectors() -> Path:
    """The golden data beside the checkout; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip("no golden data beside the checkout")
    return folder
