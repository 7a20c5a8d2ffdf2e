"""A18: look-alike addresses and names.

No name service is asked anywhere: a target is an address with its checksum. What resembles an address that the governed
contracts know, or another name, is named by `propose` and `review` (`dstack.chain.look_alikes`, which has unit tests).
"""

from __future__ import annotations

import pytest

from dstack.chain.client import checked_address, parse_address, printable
from dstack.errors import ConfigError
from tests.chain_world import events_of
from tests.governed_world import ON, Action, GovernedWorld, Kind

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"  # EIP-55's own example


@pytest.mark.parametrize("place", [2, 3, 20, 40, 41])
def test_a18_one_other_digit_breaks_the_checksum(place: int) -> None:
    """An address like another, same at both ends or in the middle, is refused in the form people copy."""
    other = "1" if ADDRESS[place] != "1" else "2"
    look_alike = ADDRESS[:place] + other + ADDRESS[place + 1 :]

    with pytest.raises(ConfigError, match="wrong checksum"):
        checked_address(look_alike, what="target")
    assert checked_address(ADDRESS, what="target") == ADDRESS


@pytest.mark.parametrize(
    "text",
    [
        "vitalik.eth",
        "kms.аpp.eth",  # the second a is Cyrillic
        ADDRESS[:-1],
        ADDRESS + "0",
        ADDRESS.replace("a", "а"),  # Cyrillic
        " " + ADDRESS,
        ADDRESS[2:],
        "0x" + "00" * 20,
    ],
)
def test_a18_what_only_resembles_an_address_is_refused(text: str) -> None:
    """Names, shortened addresses, letters of other scripts and blanks."""
    for parse in (parse_address, checked_address):
        with pytest.raises(ConfigError, match="target: want"):
            parse(text, what="target")


def test_a18_foreign_text_cannot_disguise_itself_in_a_log() -> None:
    """Characters that turn or hide text do not reach a terminal as such."""
    assert printable("app\u202egpj.exe\x1b[2K\u200b\n") == "app?gpj.exe?[2K??"


def test_a18_the_contract_takes_no_look_alike_as_target(governed: GovernedWorld) -> None:
    """A proposal for an address that differs from the app's in one digit is refused when proposed and when denied."""
    digits = governed.app.address[2:].lower()
    look_alike = governed.w3.to_checksum_address("0x" + digits[:20] + ("1" if digits[20] != "1" else "2") + digits[21:])
    action = Action(Kind.COMPOSE_HASH, look_alike, b"\xc0" * 32)
    content = governed.content([action])

    refusals = [
        governed.refused(governed.owner, governed.operator, "propose", content),
        governed.refused(governed.guardian, governed.operator, "deny", [action]),
    ]

    assert refusals == [("TargetNotGoverned", Kind.COMPOSE_HASH, look_alike)] * 2


def test_a18_an_app_with_the_same_code_is_another_app(governed: GovernedWorld) -> None:
    """A twin made by the same factory has the same code hash, and shares no grant."""
    make = "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)"
    arguments = (governed.operator.address, False, True, False, bytes(32), bytes(32))
    receipt = governed.send(governed.stranger, governed.kms, make, *arguments)
    (twin,) = (e["appId"] for name, e in events_of(governed.kms, receipt) if name == "AppDeployedViaFactory")
    governed.grant(governed.image(), governed.compose(), governed.on_app(Kind.ANY_DEVICE, ON))

    codes = {bytes(governed.w3.eth.get_code(address)) for address in (twin, governed.app.address)}
    assert len(codes) == 1
    assert governed.asked(app_id=twin) == (False, "Compose hash not allowed")
    assert governed.asked()[0]
