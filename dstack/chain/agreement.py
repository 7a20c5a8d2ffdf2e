"""When several endpoints agree: on a block, and on answers. Pure counting; who was asked, and when, is `endpoints`'.

`needed` is always more than half of all endpoints, so there is never more than one thing that enough of them say.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dstack.errors import ConfigError
from dstack.policy.decision import BlockRef

Name = TypeVar("Name", bound=Hashable)
Said = TypeVar("Said", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Head:
    """The block an endpoint stands at, and the chain it says it is on."""

    chain_id: int
    block: BlockRef


def needed_of(count: int, agreement: int | None = None) -> int:
    """How many of *count* endpoints must say the same.

    Args:
        count: How many there are.
        agreement: How many an operator wants; None for the least that is safe, which is more than half.

    Raises:
        ConfigError: Fewer than that, or more than there are.
    """
    least = count // 2 + 1
    if agreement is None:
        return least
    if not least <= agreement <= count:
        raise ConfigError(f"agreement of endpoints: want {least} to {count} of {count}, got {agreement}")
    return agreement


def said_by_enough(sayings: Mapping[Name, Said], needed: int) -> tuple[Said, frozenset[Name]] | None:
    """What at least *needed* say, and who says so; None where there is no such thing."""
    groups: dict[Said, set[Name]] = {}
    for name, said in sayings.items():
        groups.setdefault(said, set()).add(name)
    for said, names in groups.items():
        if len(names) >= needed:
            return said, frozenset(names)
    return None


def block_numbers(heads: Mapping[Name, Head], needed: int) -> list[int]:
    """Numbers of blocks that at least *needed* endpoints have reached and one of them stands at, highest first."""
    numbers = sorted((head.block.number for head in heads.values()), reverse=True)
    return list(dict.fromkeys(numbers[needed - 1 :]))
