"""The host starts the right software in a TD that it can look into or carry away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstack.errors import QuoteUntrustedError


@pytest.mark.parametrize("bit", range(8))
def test_a_td_that_can_be_debugged_is_refused(world, bit):
    """A TD with any of the eight bits for TDs under debug is refused, its measurements being right."""
    attributes = (1 << 28 | 1 << bit).to_bytes(8, "little")
    evidence = world.evidence(world.events(b"\x01" * 32), fields_override={"td_attributes": attributes})
    with pytest.raises(QuoteUntrustedError, match=r"step 14: .*the TD can be debugged"):
        world.appraise(evidence)


def test_the_simulators_debug_switch_is_refused(world):
    """A simulated machine in debug mode is refused even where the simulator is trusted."""
    with pytest.raises(QuoteUntrustedError, match=r"step 14: .*the TD can be debugged"):
        world.appraise(world.evidence(world.events(b"\x01" * 32), debug=True))


def test_a_td_that_can_be_migrated_is_refused(world):
    """A TD that the host may move to another machine is refused."""
    attributes = (1 << 28 | 1 << 29).to_bytes(8, "little")
    evidence = world.evidence(world.events(b"\x01" * 32), fields_override={"td_attributes": attributes})
    with pytest.raises(QuoteUntrustedError, match=r"step 14: .*the TD can be migrated"):
        world.appraise(evidence)


def test_clearing_the_bit_in_the_quote_does_not_help(world):
    """A debug quote whose attribute was cleared afterwards no longer verifies."""
    evidence = world.evidence(world.events(b"\x01" * 32), debug=True)
    quote = bytearray(evidence.quote)
    quote[168] ^= 1
    with pytest.raises(QuoteUntrustedError, match=r"step 12: quote: its signature does not verify"):
        world.appraise(replace(evidence, quote=bytes(quote)))
