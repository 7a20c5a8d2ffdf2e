"""An unmodified dstack tool finds what it looks for: selectors, topics, ids, encodings, storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import decode
from eth_utils.abi import abi_to_signature
from eth_utils.crypto import keccak
from web3 import Web3

from dstack.chain.artifacts import load_artifact
from dstack.chain.bindings import encode_call
from tests.chain_world import COMPOSE, DEVICE, KMS_MR, OS_IMAGE, ChainWorld

INDEXED_EVENTS = {"AppDeployedViaFactory": ["appId", "deployer"], "PolicyChanged": ["actor", "policy", "value"]}
OPENZEPPELIN_EVENTS = {"OwnershipTransferred", "OwnershipTransferStarted", "Initialized", "Upgraded"}


def signatures(kind: str) -> dict[str, dict[str, Any]]:
    """Everything of one kind in the ABI of both contracts."""
    entries = load_artifact("KmsAuth").abi + load_artifact("AppAuth").abi
    return {abi_to_signature(entry): entry for entry in entries if entry["type"] == kind}


def test_every_function_of_upstream_is_there(upstream: Any) -> None:
    """Each function of upstream's contracts has one of the same selector here."""
    ours = signatures("function")

    found = {
        signature: "0x" + keccak(text=signature)[:4].hex() for signature in upstream["selectors"] if signature in ours
    }

    assert found == upstream["selectors"]


def test_every_event_of_upstream_is_there(upstream: Any) -> None:
    """Each event of upstream's contracts has one of the same topic here."""
    ours = signatures("event")

    found = {name: "0x" + keccak(text=name).hex() for name in upstream["event_topics"] if name in ours}

    assert found == upstream["event_topics"]


def test_events_index_what_upstream_indexes() -> None:
    """Only the two late events of upstream have indexed arguments; indexers would misread any other choice."""
    ours = [entry for entry in signatures("event").values() if entry["name"] not in OPENZEPPELIN_EVENTS]

    indexed = {entry["name"]: [arg["name"] for arg in entry["inputs"] if arg["indexed"]] for entry in ours}

    assert {name: arguments for name, arguments in indexed.items() if arguments} == INDEXED_EVENTS


def test_boot_info_is_encoded_as_upstream_encodes_it(upstream: Any) -> None:
    """Call data for both questions is upstream's, byte for byte."""
    for case in upstream["boot_info"]:
        boot = case["boot_info_json"]
        asked = (
            Web3.to_checksum_address("0x" + boot["appId"]),
            bytes.fromhex(boot["composeHash"]),
            Web3.to_checksum_address("0x" + boot["instanceId"].rjust(40, "0")),
            bytes.fromhex(boot["deviceId"]),
            bytes.fromhex(boot["mrAggregated"]),
            bytes.fromhex(boot["mrSystem"]),
            bytes.fromhex(boot["osImageHash"]),
            boot["tcbStatus"],
            boot["advisoryIds"],
        )
        for function in ("isAppAllowed", "isKmsAllowed"):
            assert "0x" + encode_call("KmsAuth", function, asked).hex() == case[f"{function}_calldata"]


def test_answers_are_encoded_as_upstream_encodes_them(world: ChainWorld, upstream: Any) -> None:
    """Return data of a yes and of two kinds of no is upstream's, byte for byte."""
    app = world.own_app_auth.address
    world.send(world.owner, world.own_kms_auth, "registerApp", app)
    boot = world.boot(app_id=bytes.fromhex(app[2:]))

    def answer() -> str:
        data = encode_call("KmsAuth", "isAppAllowed", boot.abi_tuple())
        return Web3.to_hex(world.w3.eth.call({"to": world.own_kms_auth.address, "data": Web3.to_hex(data)}))

    image_missing = answer()
    world.send(world.owner, world.own_kms_auth, "addOsImageHash", OS_IMAGE)
    allowed = answer()
    world.send(world.owner, world.own_app_auth, "removeComposeHash", COMPOSE)
    compose_missing = answer()

    assert [allowed, image_missing, compose_missing] == [case["returndata"] for case in upstream["return_values"]]


def test_interface_ids_are_upstreams(world: ChainWorld, upstream: Any) -> None:
    """AppAuth answers to all three ids, KmsAuth to two, and neither to any other."""
    ids = {name: bytes.fromhex(value[2:]) for name, value in upstream["interface_ids"].items()}

    app = {name: world.app_auth.functions.supportsInterface(value).call() for name, value in ids.items()}
    kms = {name: world.kms_auth.functions.supportsInterface(value).call() for name, value in ids.items()}

    assert app == {"IAppAuth": True, "IAppAuthBasicManagement": True, "IERC165": True}
    assert kms == {"IAppAuth": True, "IAppAuthBasicManagement": False, "IERC165": True}
    assert not world.app_auth.functions.supportsInterface(b"\xff" * 4).call()
    assert not world.kms_auth.functions.supportsInterface(b"\xff" * 4).call()


@pytest.mark.parametrize(("ours", "theirs"), [("KmsAuth", "DstackKms"), ("AppAuth", "DstackApp")])
def test_storage_layout_is_upstreams(project_root: Path, upstream: Any, ours: str, theirs: str) -> None:
    """Variables lie where upstream has them, and ours behind: an upstream proxy can be upgraded to this code."""
    artifact = json.loads((project_root / f"dstack/chain/artifacts/{ours}.json").read_text())

    layout = [(entry["slot"], entry["offset"], entry["label"]) for entry in artifact["storageLayout"]]

    expected = []
    for place, label in upstream["storage_layout"][theirs]:
        slot, _, offset = place.partition("+")
        expected.append((int(slot), int(offset or 0), label.split()[0].split("[")[0]))
    *variables, gap = expected
    assert layout[: len(variables)] == variables
    assert (gap[2], layout[-1][2]) == ("gap", "__gap")
    assert all(place[:2] > variables[-1][:2] for place in layout[len(variables) :])


def test_values_lie_in_the_slots_of_the_layout(world: ChainWorld, upstream: Any) -> None:
    """Reading raw slots finds an allowed hash, both flags, and OpenZeppelin's owner at its ERC-7201 slot."""
    address = world.own_app_auth.address
    world.send(world.owner, world.own_app_auth, "setAllowAnyDevice", True)

    def slot(place: int) -> int:
        return int.from_bytes(world.w3.eth.get_storage_at(address, place), "big")

    def in_mapping(key: bytes, place: int) -> int:
        return slot(int.from_bytes(keccak(key + place.to_bytes(32, "big")), "big"))

    owner_slot = int(upstream["erc7201_slots"]["openzeppelin.storage.Ownable"], 16)
    assert [in_mapping(COMPOSE, 0), slot(1), in_mapping(DEVICE, 2), slot(3)] == [1, 1 << 8, 1, 1]
    assert slot(owner_slot) == int(world.owner.address, 16)


POLICY_OF_CALL = [
    ("own_kms_auth", "addOsImageHash", [OS_IMAGE], "os-image", OS_IMAGE, True),
    ("own_kms_auth", "removeOsImageHash", [OS_IMAGE], "os-image", OS_IMAGE, False),
    ("own_kms_auth", "addKmsAggregatedMr", [KMS_MR], "kms-aggregated-mr", KMS_MR, True),
    ("own_kms_auth", "removeKmsAggregatedMr", [KMS_MR], "kms-aggregated-mr", KMS_MR, False),
    ("own_kms_auth", "addKmsDevice", [DEVICE], "kms-device", DEVICE, True),
    ("own_kms_auth", "removeKmsDevice", [DEVICE], "kms-device", DEVICE, False),
    ("own_kms_auth", "setGatewayAppId", ["0xgateway"], "gateway-app-id", keccak(text="0xgateway"), True),
    ("own_kms_auth", "registerApp", ["0x" + "11" * 20], "registered-app", bytes(12) + b"\x11" * 20, True),
    ("own_kms_auth", "setAppImplementation", ["0x" + "22" * 20], "app-implementation", bytes(12) + b"\x22" * 20, True),
    ("own_app_auth", "addComposeHash", [COMPOSE], "compose-hash", COMPOSE, True),
    ("own_app_auth", "removeComposeHash", [COMPOSE], "compose-hash", COMPOSE, False),
    ("own_app_auth", "addDevice", [DEVICE], "device", DEVICE, True),
    ("own_app_auth", "removeDevice", [DEVICE], "device", DEVICE, False),
    ("own_app_auth", "setAllowAnyDevice", [True], "allow-any-device", bytes(32), True),
    ("own_app_auth", "setRequireTcbUpToDate", [False], "require-tcb-up-to-date", bytes(32), False),
    ("own_app_auth", "disableUpgrades", [], "upgrades-disabled", bytes(32), True),
]


@pytest.mark.parametrize(("name", "function", "arguments", "policy", "value", "enabled"), POLICY_OF_CALL)
def test_policy_changes_are_announced(
    world: ChainWorld,
    upstream: Any,
    name: str,
    function: str,
    arguments: list[Any],
    policy: str,
    value: bytes,
    enabled: bool,
) -> None:
    """Each change emits PolicyChanged with upstream's policy id, the value and the direction."""
    contract = getattr(world, name)

    receipt = world.send(world.owner, contract, function, *arguments)

    topic = bytes.fromhex(upstream["event_topics"]["PolicyChanged(address,bytes32,bytes32,bool)"][2:])
    (log,) = [log for log in receipt["logs"] if bytes(log["topics"][0]) == topic]
    assert [Web3.to_hex(part) for part in log["topics"][1:]] == [
        "0x" + world.owner.address[2:].lower().rjust(64, "0"),
        upstream["policy_topics"][policy],
        Web3.to_hex(value),
    ]
    assert decode(["bool"], bytes(log["data"])) == (enabled,)


def test_kms_info_is_announced_by_its_digest(world: ChainWorld, upstream: Any) -> None:
    """Every setter of KMS info announces keccak256 of the whole, which the getter lets anybody recompute."""
    info = (b"k256", b"ca", b"quote", b"log")
    receipts = [
        world.send(world.owner, world.own_kms_auth, "setKmsInfo", info),
        world.send(world.owner, world.own_kms_auth, "setKmsQuote", b"quote two"),
        world.send(world.owner, world.own_kms_auth, "setKmsEventlog", b"log two"),
    ]

    announced = [receipt["logs"][-1]["topics"][2:] for receipt in receipts]

    states = [info, (b"k256", b"ca", b"quote two", b"log"), (b"k256", b"ca", b"quote two", b"log two")]
    policy = upstream["policy_topics"]["kms-info"]
    encoded = [world.w3.codec.encode(["(bytes,bytes,bytes,bytes)"], [state]) for state in states]
    assert [[Web3.to_hex(topic) for topic in pair] for pair in announced] == [
        [policy, Web3.to_hex(keccak(each))] for each in encoded
    ]
    assert tuple(world.own_kms_auth.functions.kmsInfo().call()) == states[-1]
