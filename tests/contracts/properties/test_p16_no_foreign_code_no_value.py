"""P16: no delegatecall, no arbitrary call, no value."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dstack.chain.artifacts import load_artifact
from tests.governed_world import OWN, Action, GovernedWorld, Kind

CALLCODE, DELEGATECALL, CREATE, CREATE2, SELFDESTRUCT = 0xF2, 0xF4, 0xF0, 0xF5, 0xFF


def instructions(code: bytes) -> Iterator[int]:
    """The instructions of contract code, without what they push and without the metadata behind them."""
    end = len(code) - 2 - int.from_bytes(code[-2:], "big")
    place = 0
    while place < end:
        yield code[place]
        place += 1 + max(0, code[place] - 0x5F if 0x60 <= code[place] <= 0x7F else 0)


def test_p16_the_operator_cannot_run_foreign_code_or_make_contracts(governed: GovernedWorld) -> None:
    """None of these instructions is in its code, and the chain has that code."""
    artifact = load_artifact("UpgradeOperator")

    found = set(instructions(artifact.deployed_bytecode))

    assert artifact.is_code(bytes(governed.w3.eth.get_code(governed.operator.address)))
    assert not found & {CALLCODE, DELEGATECALL, CREATE, CREATE2, SELFDESTRUCT}


def test_p16_nothing_takes_value(governed: GovernedWorld) -> None:
    """No function of the operator is payable, and there is neither receive nor fallback."""
    abi = load_artifact("UpgradeOperator").abi
    transfers = [
        governed.transact(governed.stranger, governed.operator.address, data, value=1)["status"]
        for data in (b"", bytes.fromhex("deadbeef"))
    ]
    refusal = governed.refused(governed.guardian, governed.operator, "deny", [governed.compose()], value=1)

    assert {entry.get("stateMutability") for entry in abi} & {"payable"} == set()
    assert not [entry for entry in abi if entry["type"] in ("receive", "fallback")]
    assert (transfers, refusal) == ([0, 0], ("nothing",))


def test_p16_nothing_sends_value(governed: GovernedWorld) -> None:
    """Coins forced upon it stay: no grant moves any."""
    governed.rpc("anvil_setBalance", governed.operator.address, hex(10**18))

    governed.grant(governed.compose(), governed.image(), governed.version(1))

    assert governed.w3.eth.get_balance(governed.operator.address) == 10**18


@pytest.mark.parametrize("kind", [23, 255])
def test_p16_kinds_are_a_closed_set(governed: GovernedWorld, kind: int) -> None:
    """A number behind the last kind is no action, on either path."""
    action = Action(kind, governed.app.address, b"\x01" * 32)
    content = ([action], [], [bytes(32)] * 2, "")

    assert governed.refused(governed.owner, governed.operator, "propose", content)[0] in ("nothing", "Panic")
    assert governed.refused(governed.guardian, governed.operator, "deny", [action])[0] in ("nothing", "Panic")


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_p16_only_own_contracts_are_called(governed: GovernedWorld, kind: Kind) -> None:
    """A target of another owner, one without code, and (for its own kinds) any other contract are refused."""
    foreign = governed.own_app(governed.stranger).address
    targets = [governed.app.address] if kind in OWN else [governed.stranger, foreign]

    for target in targets:
        action = Action(kind, target, b"\x01" * 32)
        content = ([action], [], [bytes(32)] * 2, "")
        refusal = governed.refused(governed.owner, governed.operator, "propose", content)
        assert refusal == ("TargetNotGoverned", kind, target)
        assert governed.refused(governed.owner, governed.operator, "deny", [action]) == refusal
