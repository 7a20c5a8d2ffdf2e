"""Counting what endpoints say: more than half, and never more than one thing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.chain.agreement import Head, block_numbers, needed_of, said_by_enough
from dstack.errors import ConfigError
from tests.rpc_nodes import block_at


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_more_than_half_must_agree(count: int, needed: int) -> None:
    """Without a setting the least safe number is taken."""
    assert needed_of(count) == needed


@pytest.mark.parametrize(("count", "agreement"), [(2, 1), (3, 1), (3, 4), (4, 2), (3, 0)])
def test_half_is_not_enough(count: int, agreement: int) -> None:
    """A number that would let two groups each be enough is refused, and so is one that cannot be reached."""
    with pytest.raises(ConfigError, match=rf"want \d to {count} of {count}, got {agreement}"):
        needed_of(count, agreement)


@given(st.dictionaries(st.integers(0, 8), st.integers(0, 3), min_size=1))
def test_at_most_one_thing_is_said_by_enough(sayings: dict[int, int]) -> None:
    """What enough say is said by everyone who is named, and by nobody else."""
    needed = needed_of(len(sayings))

    found = said_by_enough(sayings, needed)

    counts = {said: list(sayings.values()).count(said) for said in sayings.values()}
    if found is None:
        assert max(counts.values()) < needed
    else:
        assert found[1] == {name for name, said in sayings.items() if said == found[0]}
        assert len(found[1]) >= needed


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([7, 7, 7], [7]), ([7, 8, 9], [8, 7]), ([10**9, 7, 7], [7]), ([3, 7, 7], [7, 3]), ([7], [])],
)
def test_a_block_counts_when_enough_have_reached_it(numbers: list[int], expected: list[int]) -> None:
    """Neither one that is far ahead nor one that is far behind moves the block."""
    heads = {place: Head(1, block_at(number)) for place, number in enumerate(numbers)}

    assert block_numbers(heads, 2) == expected
