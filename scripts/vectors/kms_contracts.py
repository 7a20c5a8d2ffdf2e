"""The kind `kms/contracts`: what the contracts are asked and answer, as our readers encode and decode it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import xor
from typing import Any

from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak

from dstack.chain.artifacts import load_artifact
from dstack.chain.kms_auth import BOOT_INFO_TYPE, app_decision
from dstack.chain.reading import Returned
from dstack.policy import Denied, Granted
from dstack.policy.boot_info import BootInfo
from dstack.policy.decision import NO_BLOCK
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, OsImageHash
from kms.auth_eth import boot_info_of
from kms.auth_server import BootRequest
from vectors.compare import Computation, Computed, Sections, UnsupportedError

_INTERFACES: Mapping[str, tuple[str, ...]] = {
    "IAppAuth": ("isAppAllowed",),
    "IAppAuthBasicManagement": ("addComposeHash", "removeComposeHash", "addDevice", "removeDevice"),
    "IERC165": ("supportsInterface",),
}

# Answers are read for a question; which one it was decides nothing.
_SOME_BOOT = BootInfo(
    app_id=AppId(bytes(20)),
    compose_hash=ComposeHash(bytes(32)),
    instance_id=None,
    device_id=DeviceId(bytes(32)),
    mr_aggregated=Digest32(bytes(32)),
    mr_system=Digest32(bytes(32)),
    os_image_hash=OsImageHash(bytes(32)),
    tcb_status="UpToDate",
)


def _asked(told: Mapping[str, Any]) -> Computed:
    """A boot info as the webhook's JSON has it, read as our auth server reads it, and put to the two gates."""
    boot = boot_info_of(BootRequest.model_validate(told))
    encoded = encode([BOOT_INFO_TYPE], [boot.abi_tuple()])
    return {
        f"{gate}_calldata": "0x" + (keccak(text=f"{gate}({BOOT_INFO_TYPE})")[:4] + encoded).hex()
        for gate in ("isAppAllowed", "isKmsAllowed")
    }


def _answered(is_allowed: bool, reason: str) -> Computed:
    return {"returndata": "0x" + encode(["bool", "string"], [is_allowed, reason]).hex()}


def _read(returned: str) -> Computed:
    """A yes is what our reader of the chain takes for one; it denies where a yes gives a reason, as it may."""
    data = bytes.fromhex(returned.removeprefix("0x"))
    is_allowed, reason = decode(["bool", "string"], data)
    decision = app_decision(Returned(data), NO_BLOCK, _SOME_BOOT)
    contradicts = is_allowed and reason and isinstance(decision, Denied)
    return {"isAllowed": isinstance(decision, Granted) or bool(contradicts), "reason": reason}


def _selector(name: str) -> Computed:
    """Of a function by its signature. Which of them our contracts have is for `tests/contracts`."""
    return {"value": "0x" + keccak(text=name)[:4].hex()}


def _topic(name: str) -> Computed:
    return {"value": "0x" + keccak(text=name).hex()}


def _interface(name: str) -> Computed:
    """The ERC-165 id of an interface that our contracts answer to, from the functions in their committed build."""
    functions = _INTERFACES.get(name)
    if functions is None:
        raise UnsupportedError(f"{name}: no interface of ours")
    selectors = [int.from_bytes(bytes.fromhex(each), "big") for each in map(_selectors().__getitem__, functions)]
    return {"value": f"0x{reduce(xor, selectors):08x}"}


def _selectors() -> Mapping[str, str]:
    """By name, of the functions of AppAuth."""
    functions = [each for each in load_artifact("AppAuth").abi if each["type"] == "function"]
    return {each["name"]: keccak(text=_signature(each["name"], each["inputs"]))[:4].hex() for each in functions}


def _signature(name: str, inputs: Sequence[Mapping[str, Any]]) -> str:
    return f"{name}({','.join(map(_type, inputs))})"


def _type(of: Mapping[str, Any]) -> str:
    if not of["type"].startswith("tuple"):
        return str(of["type"])
    return f"({','.join(map(_type, of['components']))}){of['type'].removeprefix('tuple')}"


def _slot(name: str) -> Computed:
    """Where a namespace of storage begins (ERC-7201)."""
    outer = keccak((int.from_bytes(keccak(text=name), "big") - 1).to_bytes(32, "big"))
    return {"value": "0x" + (outer[:-1] + b"\0").hex()}


KINDS: Mapping[str, Sections] = {
    "kms/contracts": {
        "boot_info": (Computation(("boot_info_json",), _asked),),
        "return_values": (
            Computation(("isAllowed", "reason"), _answered),
            Computation(("returndata",), _read),
        ),
        "selectors/*": (Computation(("name",), _selector),),
        "event_topics/*": (Computation(("name",), _topic),),
        "policy_topics/*": (Computation(("name",), _topic),),
        "interface_ids/*": (Computation(("name",), _interface),),
        "erc7201_slots/*": (Computation(("name",), _slot),),
    },
}
