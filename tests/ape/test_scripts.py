"""The scripts that `ape run` runs: deploy, verify a deployment, register an app, hand ownership over."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dstack.chain.artifacts import load_artifact
from dstack.errors import InputError, RefusedError

HOURS_48 = 48 * 3600


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script by its name."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent.parent / "scripts")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def provider(networks: Any) -> Any:
    """The chain that the tests are connected to."""
    return networks.active_provider


@pytest.fixture
def deployed(script: Any, accounts: Any) -> dict[str, str]:
    """The system as the first script puts it on the chain; accounts 0 and 1 are owner and guardian, 2 pays."""
    deploy = script("deploy")
    return dict(deploy.deploy_all(accounts[2], (accounts[0].address, accounts[1].address), (HOURS_48,) * 3))


def test_a_deployment_is_verified(script: Any, provider: Any, deployed: dict[str, str]) -> None:
    """Code, owners and delays of what `deploy` made are all as they must be."""
    found = list(script("verify_deployment").checks(provider, deployed["operator"], deployed["kms_auth"]))

    assert len(found) == 8
    assert [what for what, good, _ in found if not good] == []


def test_what_is_not_ours_is_not_verified(script: Any, provider: Any, accounts: Any, deployed: dict[str, str]) -> None:
    """An account without code, and a KmsAuth of another owner, are named."""
    checks = script("verify_deployment").checks
    other = script("deploy").deploy_all(accounts[2], (accounts[0].address, accounts[1].address), (HOURS_48,) * 3)

    nothing = [what for what, good, _ in checks(provider, accounts[3].address, deployed["kms_auth"]) if not good]
    foreign = [what for what, good, _ in checks(provider, other["operator"], deployed["kms_auth"]) if not good]

    assert nothing[0] == f"UpgradeOperator at {accounts[3].address}"
    assert foreign == ["owner of KmsAuth is UpgradeOperator"]


def test_an_app_is_made_and_registered(script: Any, accounts: Any, deployed: dict[str, str]) -> None:
    """The operator owns it, and KmsAuth asks it; registering it again changes nothing."""
    register_app = script("register_app")

    app = register_app.make(accounts[2], deployed["kms_auth"], deployed["operator"])
    again = register_app.register(accounts[2], deployed["kms_auth"], app)

    kms, made = contract("KmsAuth", deployed["kms_auth"]), contract("AppAuth", app)
    assert (again, kms.registeredApps(app), kms.isFactoryMade(app)) == (app, True, True)
    assert made.owner() == deployed["operator"]
    assert made.requireTcbUpToDate()


def test_an_account_without_code_is_no_app(script: Any, accounts: Any, deployed: dict[str, str]) -> None:
    """Nothing is sent for it."""
    with pytest.raises(InputError, match="there is no contract"):
        script("register_app").register(accounts[2], deployed["kms_auth"], accounts[3].address)


def test_a_contract_is_handed_over_in_two_steps(script: Any, accounts: Any, deployed: dict[str, str]) -> None:
    """Offered by its owner, it is the operator's once that one's owner adopts it, and not before."""
    app = script("register_app").make(accounts[2], deployed["kms_auth"], accounts[3].address)
    operator = contract("UpgradeOperator", deployed["operator"])

    script("hand_over").offer(accounts[3], app, deployed["operator"])
    before = contract("AppAuth", app).owner()
    operator.adopt(app, sender=accounts[0])

    assert (before, contract("AppAuth", app).owner()) == (accounts[3].address, deployed["operator"])


def test_only_the_owner_hands_over_and_only_to_an_operator(
    script: Any, accounts: Any, deployed: dict[str, str]
) -> None:
    """A stranger, and an address that is no UpgradeOperator of this release, are refused before anything is sent."""
    app = script("register_app").make(accounts[2], deployed["kms_auth"], accounts[3].address)
    offer = script("hand_over").offer

    with pytest.raises(RefusedError, match="its owner is"):
        offer(accounts[4], app, deployed["operator"])
    with pytest.raises(RefusedError, match="is not the UpgradeOperator"):
        offer(accounts[3], app, deployed["kms_auth"])


def contract(name: str, address: str) -> Any:
    """One of ours at an address."""
    from ape import Contract

    return Contract(address, abi=load_artifact(name).abi)
