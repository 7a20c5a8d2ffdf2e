"""Single values leave a trail of what they were and what they became; versions that do not exist leave none."""

from __future__ import annotations

from typing import Any

import pytest
from eth_utils.crypto import keccak

from dstack.errors import RefusedError
from tests.chain_world import ChainWorld, events_of

ADDRESS = "0x" + "22" * 20


def word(number: int) -> bytes:
    """One ABI word."""
    return number.to_bytes(32, "big")


SETTERS: list[tuple[str, str, list[list[Any]], str, list[bytes]]] = [
    ("own_app_auth", "setAllowAnyDevice", [[True], [False]], "allow-any-device", [word(1), word(0)]),
    ("own_app_auth", "setRequireTcbUpToDate", [[True], [False]], "require-tcb-up-to-date", [word(1), word(0)]),
    ("own_kms_auth", "setAppImplementation", [[ADDRESS]], "app-implementation", [bytes(12) + b"\x22" * 20]),
    ("own_kms_auth", "setGatewayAppId", [["0xa"], ["0xb"]], "gateway-app-id", [keccak(b"0xa"), keccak(b"0xb")]),
]


@pytest.mark.parametrize(("name", "function", "calls", "policy", "values"), SETTERS)
def test_a_value_that_replaces_another_is_announced_with_it(
    world: ChainWorld, name: str, function: str, calls: list[list[Any]], policy: str, values: list[bytes]
) -> None:
    """Each event names the policy, the value there is now, and as the value before what the last event named."""
    contract = getattr(world, name)

    receipts = [world.send(world.owner, contract, function, *arguments) for arguments in calls]

    told = [
        arguments
        for receipt in receipts
        for event, arguments in events_of(contract, receipt)
        if event == "PolicyReplaced"
    ]
    assert [(each["policy"], each["current"]) for each in told] == [(keccak(text=policy), value) for value in values]
    assert [each["previous"] for each in told[1:]] == values[:-1]


@pytest.mark.parametrize("function", ["shortenSunset", "postponeSunset"])
def test_a_version_that_there_is_not_has_no_end_to_move(world: ChainWorld, function: str) -> None:
    """Otherwise a version could be born ended, or its end be announced before it."""
    later = world.w3.eth.get_block("latest")["timestamp"] + 86_400

    with pytest.raises(RefusedError, match="there is none of this number"):
        world.send(world.owner, world.own_app_auth, function, 99, later)

    assert world.own_app_auth.functions.versionRecord(99).call()[1] == 0
