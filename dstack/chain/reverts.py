"""Why a contract refused, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import abi_to_signature, collapse_if_tuple
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from dstack.chain.artifacts import ARTIFACT_NAMES, load_artifact
from dstack.chain.client import printable

_TEXT = keccak(text="Error(string)")[:4]
_PANIC = keccak(text="Panic(uint256)")[:4]

# How enum values are called; a test holds these to the sources.
ENUMS = {
    "enum IUpgradeOperator.State": ("Unset", "Waiting", "Ready", "Executed", "Cancelled", "Expired", "RolledBack"),
    "enum IUpgradeOperator.DelayClass": ("Policy", "Roles", "Upgrades"),
    "enum IUpgradeOperator.Kind": (
        "ComposeHash",
        "Device",
        "AnyDevice",
        "OutdatedTcb",
        "OsImage",
        "KmsAggregatedMr",
        "KmsDevice",
        "GatewayAppId",
        "AppImplementation",
        "Guardian",
        "ContractUpgrades",
        "Version",
        "Sunset",
        "App",
        "FreezeRenewal",
        "Owner",
        "Delay",
        "ImplementationUpgrade",
        "FreezeForGood",
        "KmsInfo",
        "KeyEpoch",
        "ForcedGuardian",
        "Genesis",
    ),
}

SENTENCES = {
    "UnexpectedState": "proposal {id}: want it {want}, it is {got}",
    "NotPending": "proposal {id}: want it Waiting or Ready, it is {got}",
    "ContentMismatch": "proposal {id}: the content given is not the one that was proposed (it makes {got})",
    "DeniedSince": "{kind} {subject} of {target}: denied at {deniedAt}, after or when it was proposed",
    "NoRollback": "proposal {id}: no rollback was staged with it",
    "RollbackClosed": "proposal {id}: it could be rolled back before {closedAt} only",
    "RollbackNotAgreed": "proposal {id}: owner and guardian have not both agreed to its rollback",
    "NeitherOwnerNorGuardian": "{caller}: want the owner or the guardian",
    "OwnableUnauthorizedAccount": "{account}: want the owner",
    "OwnableInvalidOwner": "owner: want an account, got {owner}",
    "GuardianMissing": "guardian: want an account, got the zero address",
    "DelayOutOfRange": "delay: want {shortest} to {longest} seconds, got {got}",
    "ActionCountOutOfRange": "actions: want 1 to {most}, got {got}",
    "UriTooLong": "uri: want at most {most} bytes, got {got}",
    "TargetNotGoverned": "{kind}: want a contract that this operator owns, got {target}",
    "NotHandedOver": "{target}: accepted, and is not owned by this operator",
    "DataMalformed": "{kind}: the data {data} is zero or not of the form wanted",
    "NotGrantable": "{kind} can only be denied",
    "NotDeniable": "{kind} cannot be denied",
    "NotForGuardian": "{kind}: want the owner; the guardian can neither deny for good nor keep its office for ever",
    "NotAlone": "{kind}: want it to be the only action of its proposal, without a rollback",
    "GenesisRecordedAlready": "app {app}: its genesis is {fingerprint}, and is never replaced",
    "EpochNotNext": "key epoch: want {want}, got {got}",
    "EpochWindowOutOfRange": "key epoch: want the one before served {shortest} to {longest} seconds more, got {got}",
    "PreviousEpochServed": "key epoch: the one before the current is served until {until}; no other begins earlier",
    "NumberTooHigh": "version {got}: want a number of at most {highest}",
    "FreezeTooSoon": "app {app}: it was frozen lately; it can be frozen by a denial from {from} on",
    "CodeHashCount": "code hashes: want {want}, two for each action, got {got}",
    "CodeChanged": "{account}: want code of hash {want}, got {got}",
    "NotNominated": "{caller}: not named for this role, or more than 14 days ago",
    "LoweredTooSoon": "{class} delay: it can be lowered by this proposal from {from} on",
    "OnlyByProposal": "ownership is handed on by a proposal only",
    "TimePassed": "time: want {current} or later, got {got}",
    "Reentered": "a contract that the operator called tried to act through it",
    "RenounceRefused": "ownership cannot be renounced",
    "UpgradesNotLongest": "delays: want that of upgrades longest, got {policy}, {roles} and {upgrades} seconds",
    "FreezeOutOfRange": "freeze: want it to end from {earliest} to {latest}, got {got}",
    "FrozenForGood": "the app is frozen for good: nothing can be granted to it any more",
    "NumberNotRising": "version {got}: want a number above the newest, {newest}",
    "VersionUnknown": "version {number}: there is none of this number",
    "VersionEnded": "version {number}: it ended at {endedAt}; only a new version can allow its content again",
    "SunsetMisplaced": "version {number}: want a sunset for an earlier version that it supersedes, "
    "or neither; got {sunset} for version {supersedes}",
    "SunsetNotMoved": "version {number}: it ends at {current} (0: never), the end {got} would not be "
    "earlier to deny, or later to grant",
    "CountOutOfRange": "version: want {fewest} to {most} of the list {policy}, got {got}",
    "RegisterLength": "register: want 48 bytes, got {got}",
    "RollbackMisstated": "version {number}: marked as a rollback: {stated}, but its content says otherwise",
    "TimeOutOfRange": "time: want {earliest} to {latest}, got {got}",
    "ZeroRefused": "want a hash, device or contract, got zero",
    "InvalidInitialization": "the contract is initialised already",
}


def explain_revert(data: bytes) -> str:
    """One sentence for the data that a refused call returned."""
    if not data:
        return "the contract refused without a reason"
    selector, arguments = data[:4], data[4:]
    try:
        if selector == _TEXT:
            return printable(decode(["bytes"], arguments)[0].decode("utf-8", "replace"))
        if selector == _PANIC:
            return f"the contract failed with panic 0x{decode(['uint256'], arguments)[0]:02x}"
        error = _errors().get(selector)
        if error is None:
            return f"the contract refused with unknown error 0x{data[:36].hex()}"
        return _sentence(error, arguments)
    except (DecodingError, OverflowError):  # As in `kms_auth`: a length that no memory could hold.
        return f"the contract refused with malformed error 0x{data[:36].hex()}"


def _sentence(error: dict[str, Any], arguments: bytes) -> str:
    inputs = error["inputs"]
    values = decode([collapse_if_tuple(entry) for entry in inputs], arguments)
    shown = {entry["name"]: _show(entry, value) for entry, value in zip(inputs, values, strict=True)}
    template = SENTENCES.get(error["name"])
    if template is not None:
        return template.format(**shown)
    return f"{error['name']}({', '.join(f'{name}={value}' for name, value in shown.items())})"


def _show(entry: dict[str, Any], value: object) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if entry["type"] == "address":
        return to_checksum_address(str(value))
    names = ENUMS.get(entry.get("internalType", ""))
    if names is not None and isinstance(value, int) and value < len(names):
        return names[value]
    return str(value)


@cache
def _errors() -> dict[bytes, dict[str, Any]]:
    return {keccak(text=abi_to_signature(entry))[:4]: entry for entry in _error_entries()}


def _error_entries() -> Iterator[Any]:
    for name in ARTIFACT_NAMES:
        yield from (entry for entry in load_artifact(name).abi if entry["type"] == "error")
