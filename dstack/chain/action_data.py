"""What the data of an action means, by its kind (`IUpgradeOperator.Kind`), and how a version is written into it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_typing import ChecksumAddress
from web3 import Web3

from dstack.chain.operator import Kind
from dstack.errors import InputError
from dstack.values import ComposeHash, Digest32, OsImageHash, Register

KMS_INFO_TYPE = "(bytes,bytes,bytes,bytes)"
VERSION_TYPE = "(uint64,bytes32,bytes32[],(bytes,bytes,bytes,bytes,bytes)[],uint64,uint64,bool)"
_ON = (1).to_bytes(32, "big")
_HASHES = (Kind.COMPOSE_HASH, Kind.DEVICE, Kind.OS_IMAGE, Kind.KMS_AGGREGATED_MR, Kind.KMS_DEVICE)
_ADDRESSES = (
    Kind.GATEWAY_APP_ID,
    Kind.APP_IMPLEMENTATION,
    Kind.GUARDIAN,
    Kind.APP,
    Kind.FREEZE_RENEWAL,
    Kind.OWNER,
    Kind.IMPLEMENTATION_UPGRADE,
    Kind.FORCED_GUARDIAN,
)
_SWITCHES = (Kind.ANY_DEVICE, Kind.CONTRACT_UPGRADES, Kind.FREEZE_FOR_GOOD)


class DelayClass(IntEnum):
    """How long an action waits, by its kind."""

    POLICY = 0
    ROLES = 1
    UPGRADES = 2


@dataclass(frozen=True, slots=True)
class RegisterSet:
    """What a machine of one shape measures; `rtmr3` is None where it follows from the instance."""

    mrtd: Register
    rtmr0: Register
    rtmr1: Register
    rtmr2: Register
    rtmr3: Register | None


@dataclass(frozen=True, slots=True)
class AppVersion:
    """One version of an app; `supersedes` is 0, and `sunset` None, where it replaces none."""

    number: int
    compose_hash: ComposeHash
    os_image_hashes: tuple[OsImageHash, ...]
    registers: tuple[RegisterSet, ...] = ()
    supersedes: int = 0
    sunset: datetime | None = None
    is_rollback: bool = False

    def encode(self) -> bytes:
        """The data of an action of kind VERSION."""
        sets = [
            tuple(bytes(register or b"") for register in (one.mrtd, one.rtmr0, one.rtmr1, one.rtmr2, one.rtmr3))
            for one in self.registers
        ]
        hashes = [bytes(image) for image in self.os_image_hashes]
        sunset = _seconds(self.sunset)
        fields = (self.number, bytes(self.compose_hash), hashes, sets, self.supersedes, sunset, self.is_rollback)
        return encode([VERSION_TYPE], [fields])


@dataclass(frozen=True, slots=True)
class SunsetChange:
    """Version `number` ends at `at`; None for never."""

    number: int
    at: datetime | None

    def encode(self) -> bytes:
        """The data of an action of kind SUNSET."""
        return encode(["uint64", "uint64"], [self.number, _seconds(self.at)])


@dataclass(frozen=True, slots=True)
class DelayChange:
    """Proposals of a class wait `seconds`."""

    delay_class: DelayClass
    seconds: int

    def encode(self) -> bytes:
        """The data of an action of kind DELAY."""
        return encode(["uint8", "uint256"], [int(self.delay_class), self.seconds])


@dataclass(frozen=True, slots=True)
class KmsInfo:
    """What KmsAuth publishes about the running KMS: the public keys of its two roots, a quote and its event log."""

    k256_pubkey: bytes
    ca_pubkey: bytes
    quote: bytes
    eventlog: bytes

    def encode(self) -> bytes:
        """The data of an action of kind KMS_INFO."""
        return encode([KMS_INFO_TYPE], [(self.k256_pubkey, self.ca_pubkey, self.quote, self.eventlog)])


@dataclass(frozen=True, slots=True)
class EpochChange:
    """Epoch `epoch` of the KMS's keys begins, and the one before is served on for `window` seconds."""

    epoch: int
    window: int

    def encode(self) -> bytes:
        """The data of an action of kind KEY_EPOCH."""
        return encode(["uint64", "uint64"], [self.epoch, self.window])


@dataclass(frozen=True, slots=True)
class Genesis:
    """Where the custody of an app's secure file begins.

    Attributes:
        fingerprint: Of the secure file.
        evidence: Digest of what the first node said about itself and the secret.
    """

    fingerprint: Digest32
    evidence: Digest32

    def encode(self) -> bytes:
        """The data of an action of kind GENESIS."""
        return bytes(self.fingerprint) + bytes(self.evidence)


@dataclass(frozen=True, slots=True)
class Switch:
    """There is nothing to say but the kind."""


# A hash, an address, a time, or one of the above.
Meaning = (
    Digest32
    | ChecksumAddress
    | datetime
    | AppVersion
    | SunsetChange
    | DelayChange
    | KmsInfo
    | EpochChange
    | Genesis
    | Switch
)


def parse_action_data(kind: Kind, data: bytes) -> Meaning:
    """What *data* says; nothing but the one right encoding is taken.

    Raises:
        InputError: It has not the form that its kind wants.
    """
    try:
        meaning, encoded = _parse(kind, data)
    except (DecodingError, InputError, ValueError, OverflowError) as exc:
        raise InputError(f"{kind.name}: the action's data is not of the form of its kind") from exc
    if encoded != data:
        raise InputError(f"{kind.name}: the action's data is not of the form of its kind")
    return meaning


def _parse(kind: Kind, data: bytes) -> tuple[Meaning, bytes]:
    if kind is Kind.VERSION:
        version = _version(decode([VERSION_TYPE], data)[0])
        return version, version.encode()
    if kind is Kind.SUNSET:
        number, seconds = decode(["uint64", "uint64"], data)
        change = SunsetChange(number, _time(seconds) if seconds else None)
        return change, change.encode()
    if kind is Kind.DELAY:
        delay_class, seconds = decode(["uint8", "uint256"], data)
        delay = DelayChange(DelayClass(delay_class), seconds)
        return delay, delay.encode()
    if kind is Kind.KMS_INFO:
        info = KmsInfo(*decode([KMS_INFO_TYPE], data)[0])
        return info, info.encode()
    if kind is Kind.KEY_EPOCH:
        epoch = EpochChange(*decode(["uint64", "uint64"], data))
        return epoch, epoch.encode()
    if kind is Kind.GENESIS:
        genesis = Genesis(Digest32(data[:32]), Digest32(data[32:]))
        return genesis, genesis.encode()
    word = Digest32(data)
    if kind in _HASHES:
        return word, data
    if kind in _ADDRESSES:
        return Web3.to_checksum_address(word[12:]), bytes(12) + word[12:]
    if kind in _SWITCHES or word == _ON:
        return Switch(), _ON
    return _time(int.from_bytes(word, "big")), data


def _version(fields: tuple[int, bytes, list[bytes], list[tuple[bytes, ...]], int, int, bool]) -> AppVersion:
    number, compose_hash, images, sets, supersedes, sunset, is_rollback = fields
    registers = tuple(
        RegisterSet(Register(one[0]), Register(one[1]), Register(one[2]), Register(one[3]), _optional(one[4]))
        for one in sets
    )
    return AppVersion(
        number,
        ComposeHash(compose_hash),
        tuple(map(OsImageHash, images)),
        registers,
        supersedes,
        _time(sunset) if sunset else None,
        is_rollback,
    )


def _optional(raw: bytes) -> Register | None:
    return Register(raw) if raw else None


def _time(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OSError, OverflowError, ValueError) as exc:
        raise InputError(f"time: want seconds that a calendar has, got {seconds}") from exc


def _seconds(at: datetime | None) -> int:
    return 0 if at is None else int(at.timestamp())
