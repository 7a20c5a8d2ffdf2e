"""P17: every policy bit (devices, TCB, gateway id, KMS set, implementations, sunset) has only these two paths."""

from __future__ import annotations

from typing import Any

import pytest
from eth_utils.abi import abi_to_signature, collapse_if_tuple

from dstack.chain.artifacts import load_artifact
from tests.governed_world import COMPOSE, GovernedWorld, version_tuple

# What anybody may call: it changes no policy of anything that exists.
OPEN = {
    "registerApp(address)",
    "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)",
    "deployAndRegisterApp(address,bool,bool,bytes32,bytes32)",
}
SAMPLES: dict[str, Any] = {
    "address": "0x" + "11" * 20,
    "bool": True,
    "bytes32": COMPOSE,
    "bytes": b"\x01",
    "string": "x",
    "uint64": 1,
    "(bytes,bytes,bytes,bytes)": (b"", b"", b"", b""),
    "(uint64,bytes32,bytes32[],(bytes,bytes,bytes,bytes,bytes)[],uint64,uint64,bool)": version_tuple(1),
}


def writing(name: str) -> list[dict[str, Any]]:
    """The functions that can change state."""
    abi = load_artifact(name).abi
    return [e for e in abi if e["type"] == "function" and e["stateMutability"] not in ("view", "pure")]


FUNCTIONS = [(name, abi_to_signature(entry)) for name in ("KmsAuth", "AppAuth") for entry in writing(name)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "signature"), [pair for pair in FUNCTIONS if pair[1] not in OPEN])
def test_p17_nobody_changes_a_policy_directly(governed: GovernedWorld, name: str, signature: str) -> None:
    """Each function that writes refuses owner, guardian and a stranger alike: it is the operator's."""
    contract = governed.kms if name == "KmsAuth" else governed.app
    (entry,) = (entry for entry in writing(name) if abi_to_signature(entry) == signature)  # type: ignore[arg-type]
    arguments = [SAMPLES[collapse_if_tuple(each)] for each in entry["inputs"]]

    for account in (governed.owner, governed.guardian, governed.stranger):
        refusal = governed.refused(account, contract, signature, *arguments)
        if signature.startswith("initialize("):
            assert refusal == ("InvalidInitialization",)
        elif signature == "renounceOwnership()":
            assert refusal == ("RenounceRefused",)
        else:
            assert refusal == ("OwnableUnauthorizedAccount", account)


def test_p17_what_anybody_may_do_grants_nothing(governed: GovernedWorld) -> None:
    """Registering an app, or making one, leaves every answer about another app as it was."""
    before = governed.asked(), governed.allowed_at(governed.now)

    governed.send(governed.stranger, governed.kms, "registerApp", governed.app.address)
    for signature in sorted(OPEN - {"registerApp(address)"}):
        values = [True] * (signature.count("bool"))
        governed.send(governed.stranger, governed.kms, signature, governed.stranger, *values, COMPOSE, COMPOSE)

    assert (governed.asked(), governed.allowed_at(governed.now)) == before == ((False, "OS image is not allowed"),) * 2


def test_p17_the_open_functions_are_these_only(governed: GovernedWorld) -> None:
    """A new function that writes has to be put on one side by name."""
    assert {signature for _, signature in FUNCTIONS} >= OPEN
    assert governed.kms.functions.owner().call() == governed.operator.address
    assert governed.app.functions.owner().call() == governed.operator.address
