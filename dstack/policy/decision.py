"""A decision of the chain: Granted, or Denied by a named rule.

A refusal is an answer, not an exception. "Could not ask" is neither and is raised as `ChainUnavailableError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dstack.policy.key_epochs import FIRST_EPOCH, KeyEpochs
from dstack.values import Digest32


class Rule(Enum):
    """Which rule of the contracts denied; the value is its reason text, on which tools match."""

    TCB_STATUS = "TCB status is not up to date"
    OS_IMAGE = "OS image is not allowed"
    AGGREGATED_MR = "Aggregated MR not allowed"
    KMS_DEVICE = "KMS is not allowed to boot on this device"
    APP_REGISTERED = "App not registered"
    APP_FROZEN = "App is frozen"
    APP_DEPLOYED = "App not deployed or invalid address"
    COMPOSE_HASH = "Compose hash not allowed"
    DEVICE = "Device not allowed"
    APP_CONTRACT = "App contract did not answer"
    NOT_GOVERNED = "Not governed by this operator"
    NOT_ANNOUNCED = "Not announced"
    REGISTERS = "Registers not allowed"
    CONTRACT = "A contract did not answer"
    OTHER = ""


_RULES = {rule.value: rule for rule in Rule}


@dataclass(frozen=True, slots=True)
class BlockRef:
    """One block: the state a decision rests on. `timestamp` is in Unix seconds."""

    number: int
    hash: Digest32
    timestamp: int


NO_BLOCK = BlockRef(0, Digest32(bytes(Digest32.SIZE)), 0)
"""Where a decision names no block: an auth server's."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The chain permits it, in the state of `block`.

    Attributes:
        block: Where.
        epochs: Which keys are served in that state.
        gateway_app_id: Of the gateway that apps are told to trust in that state; empty where none is named.
    """

    block: BlockRef
    epochs: KeyEpochs = FIRST_EPOCH
    gateway_app_id: str = ""


@dataclass(frozen=True, slots=True)
class Denied:
    """The chain forbids it: which rule, what was seen, and the contract's own words."""

    rule: Rule
    got: str
    reason: str
    block: BlockRef


Decision = Granted | Denied


def decide(is_allowed: bool, reason: str, block: BlockRef, seen: dict[Rule, str]) -> Decision:
    """Turn a contract's answer into a decision.

    Args:
        is_allowed: The first value that the contract returned.
        reason: The second: its words, empty when it allows.
        block: The state it was asked in.
        seen: For each rule, the value that the rule judged, for people to read.

    Returns:
        `Granted` only for a plain yes; a yes that also gives a reason is a contradiction and denies.
    """
    if is_allowed and not reason:
        return Granted(block)
    rule = _RULES.get(reason, Rule.OTHER)
    return Denied(rule, seen.get(rule, ""), reason or "no reason given", block)
