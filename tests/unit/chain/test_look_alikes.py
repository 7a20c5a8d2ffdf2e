"""What only resembles something is named."""

from __future__ import annotations

import pytest

from dstack.chain.client import checked_address
from dstack.chain.look_alikes import address_warnings, content_warnings, name_resembles, name_warnings, resembles
from dstack.chain.operator import Action, Content, Kind

KNOWN = checked_address("0x" + "a1b2c3d4e5" * 4, what="known")
ENDS = checked_address("0xa1b2" + "0" * 32 + "d4e5", what="ends")
MIDDLE = checked_address("0x" + "a1b2c3d4e5" * 3 + "a1b0c0d0e5", what="middle")
OTHER = checked_address("0x" + "77" * 20, what="other")


@pytest.mark.parametrize(
    ("address", "alike"),
    [(KNOWN, False), (ENDS, True), (MIDDLE, True), (OTHER, False)],
    ids=["same", "ends", "few", "other"],
)
def test_an_address_like_a_known_one_is_found(address: str, alike: bool) -> None:
    """Both ends alike, or few digits apart; the address itself, and a quite different one, are no look-alikes."""
    assert resembles(address, KNOWN) is alike


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("payments", False),
        ("paym\u0435nts", True),
        ("PAYMENTS", True),
        ("payrnents", True),
        ("pa\u0443ments", True),
        ("payments\u200b", True),
        ("p\u00e4yments", True),
        ("payment", False),
        ("refunds", False),
    ],
)
def test_a_name_like_another_is_found(name: str, alike: bool) -> None:
    """Another script, another case, letters that together look like one, marks and what is not seen."""
    assert name_resembles(name, "payments") is alike


def test_target_and_named_account_are_looked_at() -> None:
    """Each is compared with every known address; a known one is never a look-alike of another."""
    word = bytes(12) + bytes.fromhex(ENDS[2:])
    actions = [Action(Kind.GUARDIAN, KNOWN, word), Action(Kind.DEVICE, MIDDLE, b"\x01" * 32)]

    assert list(address_warnings(actions, {KNOWN: "the operator"})) == [
        f"! LOOK-ALIKE: GUARDIAN names {ENDS}, which is not the operator {KNOWN}",
        f"! LOOK-ALIKE: DEVICE names {MIDDLE}, which is not the operator {KNOWN}",
    ]
    assert list(address_warnings(actions, {KNOWN: "the operator", ENDS: "b", MIDDLE: "c"})) == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://ex\u0430mple.org/x", "holds letters outside of ASCII: U+0430"),
        ("https://xn--exmple-4nf.org", "holds an encoded name"),
        ("https://example.org/x", None),
    ],
)
def test_a_uri_that_is_not_what_it_seems_is_named(uri: str, said: str | None) -> None:
    """Letters of other scripts, and names that encode them."""
    warnings = content_warnings(Content((), (), (), uri), {})

    assert [said in one for one in warnings] == ([] if said is None else [True])


def test_a_name_is_compared_with_all_others() -> None:
    """Once for what it resembles, once for its letters."""
    assert list(name_warnings("w\u0435b", ["web", "db"])) == [
        "! LOOK-ALIKE: name 'w\u0435b' is not 'web'",
        "! LOOK-ALIKE: name 'w\u0435b' holds letters outside of ASCII: U+0435",
    ]
