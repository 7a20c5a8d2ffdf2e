"""A contract's answer becomes Granted only when it is a plain yes."""

import pytest

from dstack.policy import BlockRef, Denied, Granted, Rule, decide
from dstack.values import Digest32

BLOCK = BlockRef(7, Digest32(bytes([1]) * 32), 1_700_000_000)


def test_a_plain_yes_is_granted() -> None:
    """Yes without a reason grants, and says in which state."""
    assert decide(True, "", BLOCK, {}) == Granted(BLOCK)


def test_a_yes_that_gives_a_reason_is_denied() -> None:
    """A contradiction is never a grant."""
    answer = decide(True, "Device not allowed", BLOCK, {Rule.DEVICE: "aa"})

    assert answer == Denied(Rule.DEVICE, "aa", "Device not allowed", BLOCK)


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.OTHER])
def test_each_reason_names_its_rule(rule: Rule) -> None:
    """Upstream's words are mapped to the rule, with the value that the rule judged."""
    answer = decide(False, rule.value, BLOCK, {rule: "seen"})

    assert answer == Denied(rule, "seen", rule.value, BLOCK)


def test_a_no_in_unknown_words_is_still_a_no() -> None:
    """Unknown words keep their text under the rule OTHER."""
    assert decide(False, "maintenance", BLOCK, {}) == Denied(Rule.OTHER, "", "maintenance", BLOCK)


def test_a_no_without_words_is_still_a_no() -> None:
    """An empty reason does not turn a no into anything else."""
    assert decide(False, "", BLOCK, {}) == Denied(Rule.OTHER, "", "no reason given", BLOCK)
