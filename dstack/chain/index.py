"""An index of events that is carried on from where it ended, and notices when the chain took blocks back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eth_typing import ChecksumAddress
from web3 import Web3

from dstack.chain.history import Header, PastEvent, past_events, read_header, require_unchanged


@dataclass(frozen=True, slots=True)
class EventIndex:
    """The events of some contracts from `first_block` up to `newest`.

    Attributes:
        anchors: Blocks whose hashes were seen, oldest first: those with events, and where each reading ended.
        dropped: How many events the last reading took out again, because their blocks are gone.
    """

    first_block: int
    events: tuple[PastEvent, ...] = ()
    anchors: tuple[Header, ...] = ()
    dropped: int = 0

    @property
    def newest(self) -> Header | None:
        """Up to where it was read."""
        return self.anchors[-1] if self.anchors else None


def carry_on(w3: Web3, contracts: Mapping[ChecksumAddress, str], index: EventIndex) -> EventIndex:
    """Read what happened since; what was in blocks that are gone is taken out first, and what replaced it is read.

    It may be stopped at any time and called again with the index that it got.

    Args:
        w3: The chain.
        contracts: Artifact names by address; always the same ones for one index.
        index: What was read before.

    Raises:
        ChainUnavailableError: The endpoint does not answer, or the chain was reorganised while it was read.
    """
    kept = _common(w3, index.anchors)
    since = kept[-1].number + 1 if kept else index.first_block
    old = tuple(event for event in index.events if event.block < since)
    newest = read_header(w3, "latest")
    if kept:
        require_unchanged(w3, kept[-1])
    new: tuple[PastEvent, ...] = ()
    if newest.number >= since:
        new = past_events(w3, contracts, first_block=since, last_block=newest.number)
    require_unchanged(w3, newest)
    seen = {event.block: Header(event.block, event.block_hash, event.at) for event in new}
    if newest.number >= since:
        seen[newest.number] = newest
    return EventIndex(index.first_block, (*old, *new), (*kept, *seen.values()), len(index.events) - len(old))


def _common(w3: Web3, anchors: tuple[Header, ...]) -> tuple[Header, ...]:
    """The beginning of *anchors* that the chain still has: from the end back to the first one that stands."""
    newest = read_header(w3, "latest").number
    for count in range(len(anchors), 0, -1):
        anchor = anchors[count - 1]
        if anchor.number <= newest and read_header(w3, anchor.number).hash == anchor.hash:
            return anchors[:count]
    return ()
