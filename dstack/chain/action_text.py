"""Actions as people type them: KIND[:TARGET][=VALUE]."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from eth_typing import ChecksumAddress

from dstack.attestation.policy_document import parse_moment
from dstack.chain.action_data import DelayChange, DelayClass, EpochChange, Genesis, SunsetChange
from dstack.chain.client import checked_address
from dstack.chain.deploy import Deployment
from dstack.chain.operator import Action, Kind
from dstack.errors import InputError
from dstack.values import Digest32

_WORD = 32
_ON = (1).to_bytes(_WORD, "big")
_KINDS = {kind.name.replace("_", "").lower(): kind for kind in Kind}
_ON_APP = (
    Kind.COMPOSE_HASH,
    Kind.DEVICE,
    Kind.ANY_DEVICE,
    Kind.OUTDATED_TCB,
    Kind.SUNSET,
    Kind.FREEZE_FOR_GOOD,
    Kind.CONTRACT_UPGRADES,
    Kind.IMPLEMENTATION_UPGRADE,
    Kind.GENESIS,
)
_ON_KMS = (
    Kind.OS_IMAGE,
    Kind.KMS_AGGREGATED_MR,
    Kind.KMS_DEVICE,
    Kind.GATEWAY_APP_ID,
    Kind.APP_IMPLEMENTATION,
    Kind.APP,
    Kind.FREEZE_RENEWAL,
    Kind.KEY_EPOCH,
)
_BY_OPTIONS = {Kind.VERSION: "--app and --compose", Kind.KMS_INFO: "--kms-info"}
_DELAY = re.compile(r"(policy|roles|upgrades),([1-9][0-9]{0,9})")
_EPOCH = re.compile(r"([1-9][0-9]{0,18}),([1-9][0-9]{0,9})")
_SUNSET = re.compile(r"([1-9][0-9]{0,18}),(.+)")


def _spelt(kind: Kind) -> str:
    """As the contract spells it."""
    return kind.name.title().replace("_", "")


def parse_action(text: str, deployment: Deployment) -> Action:
    """Read one action.

    The kind is written as in the contract, in any case. TARGET is the contract: given for what belongs to an app,
    KmsAuth or UpgradeOperator otherwise. VALUE is a hash of 64 digits, an address, a time with its time zone (for
    OutdatedTcb), NUMBER,TIME (Sunset; `never` for no end), CLASS,SECONDS (Delay), NUMBER,SECONDS (KeyEpoch) or
    FINGERPRINT,EVIDENCE (Genesis).

    Raises:
        InputError: *text* is not of this form; the sentence says where.
    """
    head, equals, value = text.partition("=")
    name, colon, target_text = head.partition(":")
    kind = _KINDS.get(name.replace("-", "").lower())
    if kind is None:
        typed = sorted(_spelt(each) for each in _KINDS.values() if each not in _BY_OPTIONS)
        raise InputError(f"action: want a kind of {', '.join(typed)}, got {name[:40]!r}")
    if kind in _BY_OPTIONS:
        raise InputError(f"action: {name} is too long to type; want {_BY_OPTIONS[kind]}")
    target = _target(kind, target_text if colon else None, deployment)
    return Action(kind, target, _VALUES.get(kind, _hash)(value if equals else None, kind.name))


def parse_time(text: str, *, what: str) -> datetime:
    """Read a time to the second, with its time zone.

    Raises:
        InputError: It is none, or leaves its time zone open.
    """
    return parse_moment(text, what=what).replace(microsecond=0)


def parse_hash(text: str, *, what: str) -> Digest32:
    """Read a hash of exactly 32 bytes, not zero; nothing is padded.

    Raises:
        InputError: It is of another length, or zero.
    """
    try:
        digest = Digest32.from_hex(text)
    except InputError as exc:
        raise InputError(f"{what}: {exc}") from exc
    if digest == bytes(_WORD):
        raise InputError(f"{what}: want a hash, got zero")
    return digest


def _target(kind: Kind, text: str | None, deployment: Deployment) -> ChecksumAddress:
    if text is not None:
        return checked_address(text, what=f"{kind.name}: target")
    if kind in _ON_APP:
        raise InputError(f"{kind.name}: want the contract it belongs to, as in {kind.name}:0x...")
    return deployment.kms_auth if kind in _ON_KMS else deployment.operator


def _hash(value: str | None, what: str) -> bytes:
    return parse_hash(_required(value, what), what=what)


def _address(value: str | None, what: str) -> bytes:
    return bytes(12) + bytes.fromhex(checked_address(_required(value, what), what=what)[2:])


def _switch(value: str | None, what: str) -> bytes:
    if value is not None:
        raise InputError(f"{what}: want no value")
    return _ON


def _tolerance(value: str | None, what: str) -> bytes:
    return _ON if value is None else int(parse_time(value, what=what).timestamp()).to_bytes(_WORD, "big")


def _sunset(value: str | None, what: str) -> bytes:
    match = _SUNSET.fullmatch(_required(value, what))
    if match is None:
        raise InputError(f"{what}: want NUMBER,TIME or NUMBER,never")
    return SunsetChange(int(match[1]), None if match[2] == "never" else parse_time(match[2], what=what)).encode()


def _delay(value: str | None, what: str) -> bytes:
    match = _DELAY.fullmatch(_required(value, what))
    if match is None:
        raise InputError(f"{what}: want policy, roles or upgrades, a comma and seconds")
    return DelayChange(DelayClass[match[1].upper()], int(match[2])).encode()


def _epoch(value: str | None, what: str) -> bytes:
    match = _EPOCH.fullmatch(_required(value, what))
    if match is None:
        raise InputError(f"{what}: want the epoch's number, a comma and seconds")
    return EpochChange(int(match[1]), int(match[2])).encode()


def _genesis(value: str | None, what: str) -> bytes:
    fingerprint, _, evidence = _required(value, what).partition(",")
    return Genesis(
        parse_hash(fingerprint, what=f"{what}: fingerprint"), parse_hash(evidence, what=f"{what}: evidence")
    ).encode()


def _required(value: str | None, what: str) -> str:
    if not value:
        raise InputError(f"{what}: want a value, as in {what}=...")
    return value


_VALUES: dict[Kind, Callable[[str | None, str], bytes]] = {
    Kind.GATEWAY_APP_ID: _address,
    Kind.APP_IMPLEMENTATION: _address,
    Kind.GUARDIAN: _address,
    Kind.FORCED_GUARDIAN: _address,
    Kind.OWNER: _address,
    Kind.APP: _address,
    Kind.FREEZE_RENEWAL: _address,
    Kind.IMPLEMENTATION_UPGRADE: _address,
    Kind.ANY_DEVICE: _switch,
    Kind.CONTRACT_UPGRADES: _switch,
    Kind.FREEZE_FOR_GOOD: _switch,
    Kind.OUTDATED_TCB: _tolerance,
    Kind.SUNSET: _sunset,
    Kind.DELAY: _delay,
    Kind.KEY_EPOCH: _epoch,
    Kind.GENESIS: _genesis,
}
