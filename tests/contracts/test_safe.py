"""A 2-of-3 Safe as owner of UpgradeOperator, with Safe's published contracts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_account.signers.local import LocalAccount

from dstack.chain.bindings import contract_at
from dstack.chain.deploy import Deployment, deploy_system
from dstack.chain.operator import Action, Content, Kind, deny_call, execute_call, proposal_in, propose_call
from dstack.chain.proposing import current_content
from dstack.chain.safe import ARTIFACTS, Safe, deploy_safe, sign_safe_transaction
from dstack.errors import RefusedError, ToolUnavailableError
from tests.chain_world import DELAY, OS_IMAGE, URI, ChainWorld


@pytest.fixture
def artifacts(project_root: Path) -> Path:
    """Safe's compiled contracts."""
    return project_root / ARTIFACTS


@pytest.fixture
def owners(world: ChainWorld) -> list[LocalAccount]:
    """Three keys."""
    return [world.chain.funded_account() for _ in range(3)]


@pytest.fixture
def safe(world: ChainWorld, owners: list[LocalAccount], artifacts: Path) -> Safe:
    """Two of the three must sign."""
    addresses = [owner.address for owner in owners]
    return deploy_safe(world.w3, world.stranger, addresses, threshold=2, artifacts=artifacts)


@pytest.fixture
def governed(world: ChainWorld, safe: Safe) -> Deployment:
    """Contracts whose UpgradeOperator belongs to the Safe."""
    return deploy_system(world.w3, world.stranger, owner=safe.address, guardian=world.guardian.address)


def grant_of_image(deployment: Deployment) -> Action:
    """An action that lets an OS image in."""
    return Action.of(Kind.OS_IMAGE, deployment.kms_auth, OS_IMAGE)


def content_of_image(world: ChainWorld, deployment: Deployment) -> Content:
    """The same as content of a proposal."""
    return current_content(world.w3, deployment.operator, [grant_of_image(deployment)], URI)


def test_two_of_three_owners_propose_and_anybody_executes(
    world: ChainWorld, safe: Safe, owners: list[LocalAccount], governed: Deployment
) -> None:
    """The Safe proposes with any two signatures in any order, and 48 hours later a stranger executes."""
    transaction = safe.transaction(propose_call(governed.operator, content_of_image(world, governed)))
    signatures = [sign_safe_transaction(owner, transaction) for owner in (owners[2], owners[0])]

    receipt = safe.execute(world.stranger, transaction, signatures)

    proposal = proposal_in(receipt, chain_id=governed.chain_id, operator=governed.operator)
    world.warp(DELAY)
    world.call(execute_call(proposal), world.stranger)
    assert proposal.by == safe.address
    kms_auth = contract_at(world.w3, "KmsAuth", governed.kms_auth)
    assert kms_auth.functions.allowedOsImages(OS_IMAGE).call()


def test_one_signature_is_not_enough(
    world: ChainWorld, safe: Safe, owners: list[LocalAccount], governed: Deployment
) -> None:
    """Below the threshold nothing happens, and the sentence says what is missing."""
    transaction = safe.transaction(propose_call(governed.operator, content_of_image(world, governed)))

    with pytest.raises(RefusedError, match="want signatures of as many owners as the threshold says, got fewer"):
        safe.execute(world.stranger, transaction, [sign_safe_transaction(owners[0], transaction)])


def test_a_strangers_signature_does_not_count(
    world: ChainWorld, safe: Safe, owners: list[LocalAccount], governed: Deployment
) -> None:
    """Two signatures of which one is no owner's are refused."""
    transaction = safe.transaction(propose_call(governed.operator, content_of_image(world, governed)))
    signatures = [sign_safe_transaction(signer, transaction) for signer in (owners[0], world.stranger)]

    with pytest.raises(RefusedError, match="a signature is not by an owner"):
        safe.execute(world.stranger, transaction, signatures)


def test_signatures_do_not_carry_over_to_another_transaction(
    world: ChainWorld, safe: Safe, owners: list[LocalAccount], governed: Deployment
) -> None:
    """What was signed for a proposal does not authorise a denial."""
    signed = safe.transaction(propose_call(governed.operator, content_of_image(world, governed)))
    other = safe.transaction(deny_call(governed.operator, [grant_of_image(governed)]))
    signatures = [sign_safe_transaction(owner, signed) for owner in owners[:2]]

    with pytest.raises(RefusedError, match="a signature is not by an owner"):
        safe.execute(world.stranger, other, signatures)


def test_a_call_that_would_fail_is_refused_before_anybody_signs(safe: Safe, governed: Deployment) -> None:
    """The reason is the called contract's own, not the Safe's code for it."""
    with pytest.raises(RefusedError, match="actions: want 1 to 16, got 0"):
        safe.transaction(propose_call(governed.operator, Content((), (), (), URI)))


def test_the_digest_is_the_safes_own(world: ChainWorld, safe: Safe, artifacts: Path, governed: Deployment) -> None:
    """The digest computed offline is what the Safe's getTransactionHash says: what a hardware wallet shows."""
    transaction = safe.transaction(propose_call(governed.operator, content_of_image(world, governed)))

    abi = json.loads((artifacts / "Safe.sol/Safe.json").read_text())["abi"]
    functions = world.w3.eth.contract(address=safe.address, abi=abi).functions
    assert transaction.digest() == functions.getTransactionHash(*transaction.values()).call()


def test_missing_contracts_of_safe_are_named(world: ChainWorld, tmp_path: Path) -> None:
    """Without the npm package the error says what is missing."""
    with pytest.raises(ToolUnavailableError, match="Safe: want its compiled contract at"):
        deploy_safe(world.w3, world.owner, [world.owner.address], threshold=1, artifacts=tmp_path)
