"""The mutation run can be trusted: its rules find places in whatever the contracts are, and its faults are faults."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# Prints one line for each mutation: its rule, its name, and whether it changes its source.
LIST = """
import sys; sys.path.insert(0, "scripts")
import mutate_contracts
for each in mutate_contracts.spread(mutate_contracts.made()):
    source = (mutate_contracts.ROOT / each.path).read_bytes()
    print(each.rule, each.name, each.apply(source) != source)
"""


@pytest.fixture(scope="module")
def listed(project_root: Path) -> list[list[str]]:
    """Every mutation of the contracts as they are: rule, name, whether it changes something."""
    said = subprocess.run([sys.executable, "-c", LIST], cwd=project_root, capture_output=True, text=True, check=True)
    return [line.split() for line in said.stdout.splitlines()]


def test_the_rules_make_many_different_faults(listed: list[list[str]]) -> None:
    """More than 40 faults, each with a name of its own, each of which changes its source, from every rule."""
    names = {name for _, name, _ in listed}
    rules = Counter(rule for rule, _, _ in listed)

    assert len(names) == len(listed) > 40
    assert {changes for _, _, changes in listed} == {"True"}
    assert {"drop-require", "move-boundary", "shift-time", "drop-event", "drop-modifier", "flip-truth"} <= set(rules)


def test_a_short_run_has_its_share_of_every_rule(listed: list[list[str]]) -> None:
    """The beginning of the list, which a run with a limit takes, holds each rule as often as the contracts allow."""
    rules = {rule for rule, _, _ in listed}

    beginning = Counter(rule for rule, _, _ in listed[:100])

    assert set(beginning) == rules
