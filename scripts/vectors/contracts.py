"""The kind `kms/contracts`: what an unmodified tool of upstream looks for, found in our build of the contracts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache

from eth_utils.abi import abi_to_signature
from eth_utils.crypto import keccak

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import encode_call
from dstack.chain.kms_auth import app_decision
from dstack.chain.reading import Returned
from dstack.policy.decision import NO_BLOCK, Denied, Granted
from kms.auth_eth import boot_info_of
from kms.auth_server import BootRequest
from vectors.compare import Computation, Computed, Sections, UnsupportedError

# Of the replicatoor's UpgradeOperator, whose interface ours does not keep (governance.md 6).
_NOT_KEPT = ("set_mrtd(", "get_mrtd(", "rtmrs(", "SetMRTD(")
_HASHES = ("mrAggregated", "osImageHash", "composeHash", "deviceId")
_ANYBODY = boot_info_of(
    BootRequest.model_validate({"appId": "01" * 20, "instanceId": "", **dict.fromkeys(_HASHES, "02" * 32)})
)
_INTERFACES = {
    "IAppAuth": ("isAppAllowed",),
    "IAppAuthBasicManagement": ("addComposeHash", "removeComposeHash", "addDevice", "removeDevice"),
    "IERC165": ("supportsInterface",),
}


@cache
def _signatures(kind: str) -> frozenset[str]:
    """Everything of one kind in the ABI of KmsAuth and AppAuth."""
    entries = load_artifact("KmsAuth").abi + load_artifact("AppAuth").abi
    return frozenset(abi_to_signature(entry) for entry in entries if entry["type"] == kind)


def _boot_info(boot_info: dict[str, object]) -> Computed:
    asked = boot_info_of(BootRequest.model_validate_json(json.dumps(boot_info))).abi_tuple()
    return {
        f"{function}_calldata": "0x" + encode_call("KmsAuth", function, asked).hex()
        for function in ("isAppAllowed", "isKmsAllowed")
    }


def _decision(returndata: str) -> Computed:
    """What the chain reader makes of an answer of upstream's contract."""
    decision = app_decision(Returned(bytes.fromhex(returndata.removeprefix("0x"))), NO_BLOCK, _ANYBODY)
    granted = isinstance(decision, Granted)
    return {"isAllowed": granted, "reason": decision.reason if isinstance(decision, Denied) else ""}


def _selector(signature: str) -> Computed:
    if signature.startswith(_NOT_KEPT):
        raise UnsupportedError(signature)
    found = signature in _signatures("function")
    return {"value": "0x" + keccak(text=signature)[:4].hex() if found else "no such function"}


def _topic(signature: str) -> Computed:
    if signature.startswith(_NOT_KEPT):
        raise UnsupportedError(signature)
    found = signature in _signatures("event")
    return {"value": "0x" + keccak(text=signature).hex() if found else "no such event"}


def _policy_topic(name: str) -> Computed:
    """The code holds the topic as a constant, so that one of another spelling is not found."""
    topic = keccak(text=name)
    found = any(topic in load_artifact(contract).deployed_bytecode for contract in ("KmsAuth", "AppAuth"))
    return {"value": "0x" + topic.hex() if found else "not in the code"}


def _interface_id(name: str) -> Computed:
    if name not in _INTERFACES:
        raise UnsupportedError(name)
    value = 0
    for function in _INTERFACES[name]:
        (signature,) = {each for each in _signatures("function") if each.startswith(f"{function}(")}
        value ^= int.from_bytes(keccak(text=signature)[:4], "big")
    return {"value": f"0x{value:08x}"}


def _erc7201(name: str) -> Computed:
    """ERC-7201: keccak256(keccak256(name) - 1) with the last byte cleared; the code holds the slot as a constant."""
    inner = int.from_bytes(keccak(text=name), "big") - 1
    slot = keccak(inner.to_bytes(32, "big"))[:31] + b"\0"
    return {"value": "0x" + slot.hex() if slot in load_artifact("KmsAuth").deployed_bytecode else "not in the code"}


KINDS: Mapping[str, Sections] = {
    "kms/contracts": {
        "boot_info": (Computation(("boot_info_json",), _boot_info),),
        "return_values": (Computation(("returndata",), _decision),),
        "selectors/*": (Computation(("name",), _selector),),
        "event_topics/*": (Computation(("name",), _topic),),
        "policy_topics/*": (Computation(("name",), _policy_topic),),
        "interface_ids/*": (Computation(("name",), _interface_id),),
        "erc7201_slots/*": (Computation(("name",), _erc7201),),
    },
}
