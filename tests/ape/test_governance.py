"""The contracts as ape compiles and drives them; the many properties are tested in tests/contracts."""

from __future__ import annotations

from typing import Any

import ape
import pytest
from ape.contracts import ContractContainer
from ethpm_types import ContractType

from dstack.chain.artifacts import load_artifact

DELAY = 48 * 60 * 60
OS_IMAGE = b"\x05" * 32
OS_IMAGE_KIND = 4
URI = "ipfs://the-full-content"


@pytest.fixture
def operator(project: Any, accounts: Any) -> Any:
    """An UpgradeOperator of the first account, guarded by the second."""
    return accounts[0].deploy(project.UpgradeOperator, accounts[0], accounts[1], (DELAY, DELAY, DELAY))


@pytest.fixture
def kms_auth(project: Any, accounts: Any, operator: Any) -> Any:
    """A KmsAuth behind its proxy, owned by the operator."""
    implementation = accounts[0].deploy(project.KmsAuth)
    app_implementation = accounts[0].deploy(project.AppAuth)
    set_up = implementation.initialize.encode_input(operator, app_implementation)
    # OpenZeppelin's proxy comes from the committed artifacts: ape would compile the whole package for it.
    artifact = load_artifact("ERC1967Proxy")
    code = {"bytecode": "0x" + artifact.bytecode.hex()}
    proxy = ContractType.model_validate({"abi": artifact.abi, "deploymentBytecode": code})
    return project.KmsAuth.at(accounts[0].deploy(ContractContainer(proxy), implementation, set_up).address)


def test_a_grant_waits_48_hours(accounts: Any, chain: Any, operator: Any, kms_auth: Any) -> None:
    """Refused at first, refused one second early, executed by anybody afterwards."""
    actions = [(OS_IMAGE_KIND, kms_auth.address, OS_IMAGE)]
    content = (actions, [], operator.codeHashesOf(actions, []), URI)
    queued = operator.propose(content, sender=accounts[0]).events.filter(operator.ProposalQueued)[0]

    chain.pending_timestamp = queued.readyAt - 1
    with ape.reverts(operator.UnexpectedState):
        operator.execute(queued.id, content, sender=accounts[2])
    assert not kms_auth.allowedOsImages(OS_IMAGE)

    chain.pending_timestamp = queued.readyAt
    operator.execute(queued.id, content, sender=accounts[2])
    assert kms_auth.allowedOsImages(OS_IMAGE)


def test_the_guardian_stops_a_grant(accounts: Any, operator: Any, kms_auth: Any) -> None:
    """What the guardian cancels stays cancelled."""
    actions = [(OS_IMAGE_KIND, kms_auth.address, OS_IMAGE)]
    content = (actions, [], operator.codeHashesOf(actions, []), URI)
    queued = operator.propose(content, sender=accounts[0]).events.filter(operator.ProposalQueued)[0]

    operator.cancel(queued.id, sender=accounts[1])

    cancelled = 4
    assert operator.stateOf(queued.id) == cancelled
