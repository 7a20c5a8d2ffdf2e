"""Putting a proposal together: the version that a compose file and an image make, and the content with its hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from web3 import Web3

from dstack.chain.action_data import AppVersion, RegisterSet, parse_action_data
from dstack.chain.allowed import AllowedApp
from dstack.chain.bindings import contract_at
from dstack.chain.deploy import Deployment
from dstack.chain.operator import Action, Content, Kind
from dstack.chain.tx import translated
from dstack.errors import InputError, RefusedError
from dstack.values import ComposeHash, Digest32, OsImageHash


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """What a person wants of a new version; None where the app's history says it."""

    compose_hash: ComposeHash
    os_image_hashes: tuple[OsImageHash, ...]
    registers: tuple[RegisterSet, ...]
    number: int | None
    supersedes: int | None
    sunset: datetime | None


def draft_version(draft: VersionDraft, app: AllowedApp, *, at: datetime) -> Action:
    """The action that allows a version; it supersedes the newest one that lives, unless the draft says otherwise.

    Raises:
        InputError: There is something to supersede and no sunset for it, or the other way round.
        RefusedError: The number is not above the newest, or the app takes no more grants.
    """
    if app.frozen_for_good:
        raise RefusedError(f"app {app.address}: frozen for good; nothing can be granted any more")
    number = app.newest_version + 1 if draft.number is None else draft.number
    if number <= app.newest_version:
        raise RefusedError(f"app {app.address}: want a version above {app.newest_version}, got {number}")
    live = app.live_versions(at)
    default = live[-1].version.number if live else 0
    supersedes = default if draft.supersedes is None else draft.supersedes
    if supersedes and supersedes not in app.versions:
        raise RefusedError(f"app {app.address}: there is no version {supersedes} to supersede")
    if supersedes and draft.sunset is None:
        raise InputError(f"--sunset: want the time when version {supersedes} ends; --supersedes 0 replaces none")
    if not supersedes and draft.sunset is not None:
        raise InputError("--sunset: there is no version that it could end")
    known_images = all((draft.compose_hash, image) in app.holders for image in draft.os_image_hashes)
    known_registers = {
        registers
        for known in app.versions.values()
        if known.version.compose_hash == draft.compose_hash
        for registers in known.version.registers
    }
    is_rollback = known_images and known_registers.issuperset(draft.registers)
    version = AppVersion(
        number=number,
        compose_hash=draft.compose_hash,
        os_image_hashes=draft.os_image_hashes,
        registers=draft.registers,
        supersedes=supersedes,
        sunset=draft.sunset,
        is_rollback=is_rollback,
    )
    return Action(Kind.VERSION, app.address, version.encode())


def draft_rollback(upgrade: Action, app: AllowedApp, *, at: datetime) -> Action:
    """The action that undoes *upgrade*, a version: one more version with the content of the one it supersedes.

    Args:
        upgrade: Of kind VERSION.
        app: The app.
        at: When the upgraded version ends under the rollback; if that is past by then, at once.

    Raises:
        InputError: The upgrade supersedes nothing.
    """
    new = parse_action_data(upgrade.kind, upgrade.data)
    old = app.versions.get(new.supersedes) if isinstance(new, AppVersion) else None
    if not isinstance(new, AppVersion) or old is None:
        raise InputError("--stage-rollback: there is no version to go back to")
    version = replace(
        old.version, number=new.number + 1, supersedes=new.number, sunset=at.replace(microsecond=0), is_rollback=True
    )
    return Action(Kind.VERSION, app.address, version.encode())


def draft_content(
    w3: Web3, deployment: Deployment, actions: Sequence[Action], rollback: Sequence[Action], uri: str
) -> Content:
    """The content of a proposal, with the code hashes that the contract wants it to name.

    Raises:
        RefusedError: The contract cannot say them.
        ChainUnavailableError: The endpoint does not answer.
    """
    operator = contract_at(w3, "UpgradeOperator", deployment.operator).functions
    abi = [[one.abi_tuple() for one in some] for some in (actions, rollback)]
    with translated():
        hashes = operator.codeHashesOf(*abi).call()
    return Content(tuple(actions), tuple(rollback), tuple(map(Digest32, hashes)), uri)


def delay_of(w3: Web3, deployment: Deployment, actions: Sequence[Action]) -> timedelta:
    """How long *actions* would wait if they were proposed now: the longest of them.

    Raises:
        RefusedError: The contract cannot say it.
        ChainUnavailableError: The endpoint does not answer.
    """
    operator = contract_at(w3, "UpgradeOperator", deployment.operator).functions
    with translated():
        waits = [operator.delayOf(one.abi_tuple()).call() for one in actions]
    return timedelta(seconds=max(waits))
