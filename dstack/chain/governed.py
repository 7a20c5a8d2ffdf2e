"""Everything that one UpgradeOperator governs, as of one block: proposals with their times, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from eth_typing import ChecksumAddress, HexStr
from eth_utils.address import to_checksum_address
from web3 import Web3
from web3.contract.contract import ContractFunction
from web3.types import TxParams

from dstack.chain.action_data import Genesis
from dstack.chain.allowed import Allowed, allowed_after, registered_apps
from dstack.chain.bindings import contract_at, encode_call
from dstack.chain.deploy import Deployment
from dstack.chain.history import PastEvent, past_events, read_header, require_unchanged
from dstack.chain.operator import Action, Proposal, parse_proposal
from dstack.chain.tx import translated
from dstack.errors import ChainUnavailableError, RefusedError
from dstack.policy.timelock import Stage, Timetable
from dstack.values import Digest32

_ROLES = ("Owner", "Guardian")


@dataclass(frozen=True, slots=True)
class KnownProposal:
    """A proposal, its content, and its times."""

    proposal: Proposal
    timetable: Timetable
    rollback_agreed_by: ChecksumAddress | None = None

    @property
    def id(self) -> Digest32:
        """Digest of chain, contract, nonce and content."""
        return self.proposal.id

    @property
    def actions(self) -> tuple[Action, ...]:
        """What is granted when it is executed."""
        return self.proposal.content.actions


@dataclass(frozen=True, slots=True)
class Nomination:
    """Who may take a role, and before when."""

    role: str
    account: ChecksumAddress
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Governed:
    """The state after one block.

    Attributes:
        at: The block's time.
        delays: Seconds by class: policy, roles, upgrades.
        apps: All that KmsAuth registered; `allowed.apps` are those that this operator owns.
        genesis: Where the custody of an app's secure file begins, by app.
        events: Of all governed contracts, oldest first.
    """

    block: int
    at: datetime
    owner: ChecksumAddress
    guardian: ChecksumAddress
    delays: Mapping[str, int]
    nominations: tuple[Nomination, ...]
    proposals: tuple[KnownProposal, ...]
    apps: tuple[ChecksumAddress, ...]
    allowed: Allowed
    genesis: Mapping[ChecksumAddress, Genesis]
    events: tuple[PastEvent, ...]

    def find(self, wanted: Digest32, deployment: Deployment) -> KnownProposal:
        """The proposal of this id.

        Raises:
            RefusedError: There is none.
        """
        for known in self.proposals:
            if known.id == wanted:
                return known
        raise RefusedError(
            f"id 0x{wanted.hex()}: UpgradeOperator {deployment.operator} on chain {deployment.chain_id} has no such "
            f"proposal; an id belongs to one chain and one contract"
        )

    def pending(self) -> tuple[KnownProposal, ...]:
        """Proposals that are Waiting or Ready."""
        return tuple(
            known for known in self.proposals if known.timetable.stage(self.at) in (Stage.WAITING, Stage.READY)
        )


def read_governed(w3: Web3, deployment: Deployment, *, first_block: int) -> Governed:
    """Read everything, in the state of the newest block.

    Raises:
        ChainUnavailableError: The endpoint does not answer, leaves proposals out, shows events that do not fit the
            contracts' own answers, or the chain was reorganised in between.
    """
    newest = read_header(w3, "latest")
    block = newest.number
    blocks = {"first_block": first_block, "last_block": block}
    kms_events = past_events(w3, {deployment.kms_auth: "KmsAuth"}, **blocks)
    apps = registered_apps(kms_events)
    governed = [app for app in apps if _owner(w3, app, block) == deployment.operator]
    operator_events = past_events(w3, {deployment.operator: "UpgradeOperator"}, **blocks)
    app_events = past_events(w3, dict.fromkeys(governed, "AppAuth"), **blocks)
    allowed = allowed_after((*kms_events, *app_events), kms_auth=deployment.kms_auth, apps=governed)
    _compare(w3, deployment, allowed, block)
    operator = contract_at(w3, "UpgradeOperator", deployment.operator).functions
    with translated():
        owner = operator.owner().call(block_identifier=block)
        guardian = operator.guardian().call(block_identifier=block)
        policy, roles, upgrades = operator.delays().call(block_identifier=block)
        named = [
            function().call(block_identifier=block)
            for function in (operator.nominatedOwner, operator.nominatedGuardian)
        ]
        count = operator.proposalCount().call(block_identifier=block)
    proposals = known_proposals(operator_events, deployment)
    if [known.proposal.nonce for known in proposals] != list(range(count)):
        raise ChainUnavailableError(f"UpgradeOperator: want {count} proposals, the endpoint shows {len(proposals)}")
    require_unchanged(w3, newest)
    events = sorted((*kms_events, *operator_events, *app_events), key=lambda event: (event.block, event.index))
    return Governed(
        block=block,
        at=newest.at,
        owner=owner,
        guardian=guardian,
        delays={"policy": policy, "roles": roles, "upgrades": upgrades},
        nominations=tuple(
            Nomination(role, account, datetime.fromtimestamp(expires_at, UTC))
            for role, (account, expires_at) in zip(_ROLES, named, strict=True)
            if int(account, 16)
        ),
        proposals=proposals,
        apps=apps,
        allowed=allowed,
        genesis=dict(map(_genesis, (event for event in operator_events if event.name == "GenesisRecorded"))),
        events=tuple(events),
    )


def known_proposals(events: Iterable[PastEvent], deployment: Deployment) -> tuple[KnownProposal, ...]:
    """Fold UpgradeOperator's events into its proposals, oldest first; each content must have its id.

    Raises:
        ChainUnavailableError: A content has not the id that it was announced with.
    """
    found: dict[bytes, KnownProposal] = {}
    for event in events:
        if event.name == "ProposalQueued":
            made = parse_proposal(event.log, chain_id=deployment.chain_id, operator=deployment.operator)
            found[bytes(made.id)] = KnownProposal(made, Timetable(event.at, made.ready_at, made.expires_at))
        known = found.get(bytes(event.arguments.get("id", b"")))
        if known is None:
            continue
        if event.name == "ProposalExecuted":
            known = replace(known, timetable=replace(known.timetable, executed_at=event.at))
        elif event.name == "ProposalCancelled":
            known = replace(known, timetable=replace(known.timetable, cancelled_at=event.at))
        elif event.name == "ProposalRolledBack":
            known = replace(known, timetable=replace(known.timetable, rolled_back_at=event.at))
        elif event.name == "RollbackAgreed":
            known = replace(known, rollback_agreed_by=event.arguments["by"])
        found[bytes(known.id)] = known
    return tuple(found.values())


def _genesis(event: PastEvent) -> tuple[ChecksumAddress, Genesis]:
    arguments = event.arguments
    return arguments["app"], Genesis(Digest32(arguments["fingerprint"]), Digest32(arguments["evidence"]))


def _owner(w3: Web3, app: ChecksumAddress, block: int) -> ChecksumAddress | None:
    """Who owns *app*; None for a contract that does not say."""
    question = TxParams({"to": app, "data": HexStr("0x" + encode_call("AppAuth", "owner").hex())})
    try:
        with translated():
            answer = bytes(w3.eth.call(question, block, ccip_read_enabled=False))
    except RefusedError:
        return None
    padding, account = answer[:12], answer[12:]
    is_address = len(answer) == 32 and not any(padding)
    return to_checksum_address(account) if is_address else None


def _compare(w3: Web3, deployment: Deployment, allowed: Allowed, block: int) -> None:
    """Ask the contracts about what the events claim."""
    kms = contract_at(w3, "KmsAuth", deployment.kms_auth).functions
    claims: list[tuple[ContractFunction, object]] = []
    claims += [(kms.allowedOsImages(image), True) for image in allowed.os_images]
    claims += [(kms.kmsAllowedAggregatedMrs(one), True) for one in allowed.kms_measurements]
    claims += [(kms.kmsAllowedDeviceIds(one), True) for one in allowed.kms_devices]
    served_until = allowed.previous_epoch_until
    epoch = [allowed.key_epoch, max(allowed.key_epoch - 1, 0), int(served_until.timestamp()) if served_until else 0]
    claims.append((kms.keyEpoch(), epoch))
    for address, app in allowed.apps.items():
        contract = contract_at(w3, "AppAuth", address).functions
        claims += [(contract.allowedComposeHashes(one), True) for one in app.compose_hashes]
        claims += [(contract.allowedDeviceIds(one), True) for one in app.devices]
        claims += [(contract.allowAnyDevice(), app.any_device), (contract.newestVersion(), app.newest_version)]
        claims += [(contract.requireTcbUpToDate(), app.require_tcb_up_to_date)]
        claims += [(contract.frozenForGood(), app.frozen_for_good)]
    with translated():
        for question, want in claims:
            got = question.call(block_identifier=block)
            if got != want:
                raise ChainUnavailableError(
                    f"{question.address}: {question.fn_name}: the events say {want}, the contract {got}"
                )
