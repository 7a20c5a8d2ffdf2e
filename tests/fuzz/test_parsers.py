"""What fuzzing starts from and what it ever found, replayed as ordinary tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.errors import InputError
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS, attempt

FOUND = Path(__file__).resolve().parent / "found"
# Libraries warn of what they will refuse one day, such as a certificate's serial number of zero.
pytestmark = pytest.mark.filterwarnings("ignore")
FINDINGS = sorted(path for path in FOUND.glob("*/*") if path.is_file())


def test_every_target_has_seeds() -> None:
    """A parser without a seed would be fuzzed from nothing."""
    assert SEEDS.keys() == TARGETS.keys()
    assert all(list(seeds()) for seeds in SEEDS.values())


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_seeds_are_read(name: str) -> None:
    """Every seed is of its parser's form: it is read, not refused."""
    for seed in SEEDS[name]():
        TARGETS[name](seed)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_damaged_seeds_are_read_or_refused(name: str) -> None:
    """Cut short, doubled, or with any of some bytes replaced, a seed is read or refused in a bounded sentence."""
    for seed in SEEDS[name]():
        step = max(1, len(seed) // 40)
        for at in range(0, len(seed), step):
            for byte in (0x00, 0x22, 0x7F, 0xFF):
                attempt(TARGETS[name], seed[:at] + bytes([byte]) + seed[at + 1 :])
            attempt(TARGETS[name], seed[:at])
            attempt(TARGETS[name], seed[:at] + seed)


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda path: f"{path.parent.name}-{path.name[:20]}")
def test_findings_stay_fixed(finding: Path) -> None:
    """An input that once broke a parser is read or refused."""
    attempt(TARGETS[finding.parent.name], finding.read_bytes())


def test_a_defect_is_a_finding() -> None:
    """What is not one of the project's errors gets through to the fuzzer; a refusal does not."""

    def broken(data: bytes) -> None:
        raise IndexError(len(data))

    def refusing(data: bytes) -> None:
        raise InputError("no")

    attempt(refusing, b"")
    with pytest.raises(IndexError, match="3"):
        attempt(broken, b"abc")


def test_a_boundless_error_is_a_finding() -> None:
    """An error text that grows with its input would carry a stranger's bytes into the logs."""

    def echoing(data: bytes) -> None:
        raise InputError(data.decode())

    with pytest.raises(AssertionError, match="an error text of 3000 characters"):
        attempt(echoing, b"a" * 3000)
