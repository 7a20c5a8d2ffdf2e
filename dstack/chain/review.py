"""A proposal reproduced from files: whether its hashes are those of what a signer has in hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from dstack.chain.action_data import AppVersion, RegisterSet, parse_action_data
from dstack.chain.bindings import encode_call
from dstack.chain.operator import CONTENT_TYPE, Action, Content, Kind, propose_call
from dstack.chain.signing_file import SigningFile
from dstack.errors import InputError
from dstack.values import ComposeHash, OsImageHash, Register


class Result(Enum):
    """What came of reproducing one value; the value is what people read."""

    REPRODUCED = "reproduced"
    DIFFERS = "DIFFERS"
    NOT_LOOKED_AT = "not looked at"


@dataclass(frozen=True, slots=True)
class Finding:
    """One value of a proposal, and what came of it."""

    what: str
    value: str
    result: Result


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """What an image folder amounts to; `registers` by name, none where it has no measurement document."""

    os_image_hash: OsImageHash
    registers: Mapping[str, Register]


def content_of_signing_file(file: SigningFile) -> Content:
    """The content that the transaction in *file* proposes; it must be the one encoding of it.

    Raises:
        InputError: It proposes nothing, or is encoded in another way.
    """
    transaction = file.transaction
    selector = encode_call("UpgradeOperator", "propose", ([], [], [], ""))[:4]
    try:
        if transaction.data[:4] != selector:
            raise ValueError("another function")
        content = Content.from_abi_tuple(decode([CONTENT_TYPE], transaction.data[4:])[0])
    except (DecodingError, ValueError, InputError) as exc:
        raise InputError("signing file: its transaction proposes nothing that can be read") from exc
    if propose_call(transaction.to, content).data != transaction.data:
        raise InputError("signing file: its transaction is not encoded as a proposal is")
    return content


def reproduce(
    content: Content, composes: Sequence[ComposeHash], images: Sequence[MeasuredImage]
) -> tuple[Finding, ...]:
    """Compare every hash in *content* with those of the files in hand.

    Args:
        content: The proposal's.
        composes: Compose hashes computed from app-compose.json files.
        images: Measured from image folders.

    Returns:
        One finding for each hash and register set of the content, and one for each file that it does not name.
    """
    actions = (*content.actions, *content.rollback)
    found = list(_findings(actions, composes, images))
    named = {finding.value for finding in found}
    found += [
        Finding("app-compose.json, which the proposal does not name", one.hex(), Result.DIFFERS)
        for one in composes
        if one.hex() not in named
    ]
    found += [
        Finding("image folder, which the proposal does not name", one.os_image_hash.hex(), Result.DIFFERS)
        for one in images
        if one.os_image_hash.hex() not in named
    ]
    return tuple(dict.fromkeys(found))


def _findings(
    actions: Sequence[Action], composes: Sequence[ComposeHash], images: Sequence[MeasuredImage]
) -> Iterator[Finding]:
    in_hand = [image.os_image_hash for image in images]
    for action in actions:
        meaning = parse_action_data(action.kind, action.data)
        if isinstance(meaning, AppVersion):
            yield _finding("compose hash", meaning.compose_hash, composes)
            for image in meaning.os_image_hashes:
                yield _finding("OS image hash", image, in_hand)
            for registers in meaning.registers:
                yield _registers(registers, images)
        elif action.kind is Kind.COMPOSE_HASH:
            yield _finding("compose hash", action.data, composes)
        elif action.kind is Kind.OS_IMAGE:
            yield _finding("OS image hash", action.data, in_hand)


def _finding(what: str, value: bytes, in_hand: Sequence[bytes]) -> Finding:
    if value in in_hand:
        return Finding(what, value.hex(), Result.REPRODUCED)
    return Finding(what, value.hex(), Result.DIFFERS if in_hand else Result.NOT_LOOKED_AT)


def _registers(registers: RegisterSet, images: Sequence[MeasuredImage]) -> Finding:
    """RTMR0 also follows from the machine's shape and its host's tables, RTMR3 from the app: neither is compared."""
    value = f"mrtd {registers.mrtd.hex()}, rtmr1 {registers.rtmr1.hex()}, rtmr2 {registers.rtmr2.hex()}"
    measured = [image.registers for image in images if image.registers]
    if not measured:
        return Finding("registers", value, Result.NOT_LOOKED_AT)
    fits = any(
        registers.mrtd in (one["mrtd"], one["mrtd of QEMU 8"])
        and (registers.rtmr1, registers.rtmr2) == (one["rtmr1"], one["rtmr2"])
        for one in measured
    )
    return Finding("registers MRTD, RTMR1 and RTMR2", value, Result.REPRODUCED if fits else Result.DIFFERS)
