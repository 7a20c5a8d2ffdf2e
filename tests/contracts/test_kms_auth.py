"""KmsAuth: its gates, its factory, and what the owner can and cannot do."""

from __future__ import annotations

from typing import Any

import pytest
from web3 import Web3

from dstack.chain.bindings import contract_at, encode_call
from dstack.chain.deploy import deploy_contract
from dstack.errors import RefusedError
from dstack.policy import BootInfo, Decision, Denied, Granted, Rule
from dstack.values import DeviceId, Digest32, OsImageHash
from tests.chain_world import COMPOSE, DEVICE, KMS_MR, OS_IMAGE, ChainWorld, events_of

ZERO = bytes(32)
NOBODY = "0x" + "00" * 20


@pytest.fixture
def open_gates(world: ChainWorld) -> ChainWorld:
    """The own KmsAuth lets this KMS and this app in."""
    for function, value in [("addOsImageHash", OS_IMAGE), ("addKmsAggregatedMr", KMS_MR), ("addKmsDevice", DEVICE)]:
        world.send(world.owner, world.own_kms_auth, function, value)
    world.send(world.owner, world.own_kms_auth, "registerApp", world.own_app_auth.address)
    return world


def kms_answer(world: ChainWorld, **changes: Any) -> Any:
    """What the own KmsAuth says about a KMS."""
    boot = world.boot(**changes)
    decision = world.reader(world.own_kms_auth).authorize_kms(boot)
    assert said(world, "isKmsAllowed", boot) == plain(decision)
    return decision


def app_answer(world: ChainWorld, **changes: Any) -> Any:
    """What the own KmsAuth says about the own app."""
    app = bytes.fromhex(world.own_app_auth.address[2:])
    boot = world.boot(**({"app_id": app} | changes))
    decision = world.reader(world.own_kms_auth).authorize_app(boot)
    assert said(world, "isAppAllowed", boot) == plain(decision)
    return decision


def said(world: ChainWorld, function: str, boot: BootInfo) -> list[Any]:
    """Both values, as a client reads them that does not look at the second one, unlike ours."""
    return list(world.own_kms_auth.functions[function](boot.abi_tuple()).call())


def plain(decision: Decision) -> list[Any]:
    """What must have been said, by what our reader made of it."""
    return [False, decision.reason] if isinstance(decision, Denied) else [True, ""]


def test_a_kms_with_everything_listed_is_allowed(open_gates: ChainWorld) -> None:
    """All four gates open let the KMS in."""
    assert isinstance(kms_answer(open_gates), Granted)


@pytest.mark.parametrize(
    ("change", "rule", "got"),
    [
        ({"tcb_status": "OutOfDate"}, Rule.TCB_STATUS, "OutOfDate"),
        ({"tcb_status": "uptodate"}, Rule.TCB_STATUS, "uptodate"),
        ({"os_image_hash": OsImageHash(ZERO)}, Rule.OS_IMAGE, "00" * 32),
        ({"mr_aggregated": Digest32(b"\x01" * 32)}, Rule.AGGREGATED_MR, "01" * 32),
        ({"device_id": DeviceId(b"\x02" * 32)}, Rule.KMS_DEVICE, "02" * 32),
    ],
)
def test_each_gate_of_a_kms_closes_alone(open_gates: ChainWorld, change: dict[str, Any], rule: Rule, got: str) -> None:
    """One value off the lists is enough, and the answer names the rule, what it saw, and upstream's words."""
    answer = kms_answer(open_gates, **change)

    assert answer == Denied(rule, got, rule.value, answer.block)


def test_gates_of_a_kms_are_asked_in_upstreams_order(world: ChainWorld) -> None:
    """With everything wrong the TCB is named; put right one by one, the others follow in order."""
    wrong = {"tcb_status": "Revoked"}
    rules = [kms_answer(world, **wrong).rule]
    for function, value in [(None, None), ("addOsImageHash", OS_IMAGE), ("addKmsAggregatedMr", KMS_MR)]:
        if function:
            world.send(world.owner, world.own_kms_auth, function, value)
        rules.append(kms_answer(world).rule)

    assert rules == [Rule.TCB_STATUS, Rule.OS_IMAGE, Rule.AGGREGATED_MR, Rule.KMS_DEVICE]


def test_gates_of_an_app_are_asked_in_upstreams_order(world: ChainWorld) -> None:
    """Registration, OS image, code at the address, the app's own gates."""
    empty = b"\x77" * 20
    rules = [app_answer(world).rule]
    world.send(world.stranger, world.own_kms_auth, "registerApp", world.own_app_auth.address)
    world.send(world.stranger, world.own_kms_auth, "registerApp", Web3.to_checksum_address(empty))
    rules += [app_answer(world).rule, app_answer(world, app_id=empty).rule]
    world.send(world.owner, world.own_kms_auth, "addOsImageHash", OS_IMAGE)
    rules += [app_answer(world, app_id=empty).rule, app_answer(world, tcb_status="OutOfDate").rule]

    assert rules == [Rule.APP_REGISTERED, Rule.OS_IMAGE, Rule.OS_IMAGE, Rule.APP_DEPLOYED, Rule.TCB_STATUS]
    assert isinstance(app_answer(world), Granted)


def test_a_removed_image_is_denied_again(open_gates: ChainWorld) -> None:
    """Taking an OS image off the list shuts out apps and KMS alike."""
    before = type(app_answer(open_gates)), type(kms_answer(open_gates))

    open_gates.send(open_gates.owner, open_gates.own_kms_auth, "removeOsImageHash", OS_IMAGE)

    assert before == (Granted, Granted)
    assert (app_answer(open_gates).rule, kms_answer(open_gates).rule) == (Rule.OS_IMAGE, Rule.OS_IMAGE)


OWNER_CALLS = [
    ("addOsImageHash", [OS_IMAGE]),
    ("removeOsImageHash", [OS_IMAGE]),
    ("addKmsAggregatedMr", [KMS_MR]),
    ("removeKmsAggregatedMr", [KMS_MR]),
    ("addKmsDevice", [DEVICE]),
    ("removeKmsDevice", [DEVICE]),
    ("setGatewayAppId", ["any"]),
    ("setAppImplementation", ["0x" + "22" * 20]),
    ("setKmsInfo", [(b"", b"", b"", b"")]),
    ("setKmsQuote", [b""]),
    ("setKmsEventlog", [b""]),
    ("transferOwnership", ["0x" + "22" * 20]),
    ("upgradeToAndCall", ["0x" + "22" * 20, b""]),
]


@pytest.mark.parametrize(("function", "arguments"), OWNER_CALLS)
def test_only_the_owner_changes_anything(world: ChainWorld, function: str, arguments: list[Any]) -> None:
    """A stranger is refused by every function that changes policy, owner or code."""
    with pytest.raises(RefusedError, match=f"{world.stranger.address}: want the owner"):
        world.send(world.stranger, world.own_kms_auth, function, *arguments)


@pytest.mark.parametrize(
    ("function", "value"),
    [("addOsImageHash", ZERO), ("addKmsAggregatedMr", ZERO), ("addKmsDevice", ZERO), ("setAppImplementation", NOBODY)],
)
def test_zero_is_never_allowed(world: ChainWorld, function: str, value: Any) -> None:
    """No list takes zero, so that an absent value can never match."""
    with pytest.raises(RefusedError, match="want a hash, device or contract, got zero"):
        world.send(world.owner, world.own_kms_auth, function, value)


def test_registering_the_zero_address_is_refused(world: ChainWorld) -> None:
    """Upstream's words for it."""
    with pytest.raises(RefusedError, match=r"^Invalid app ID$"):
        world.send(world.stranger, world.own_kms_auth, "registerApp", NOBODY)


def test_the_proxy_is_initialised_once(world: ChainWorld) -> None:
    """Nobody can set up a proxy again."""
    with pytest.raises(RefusedError, match="the contract is initialised already"):
        world.send(world.stranger, world.own_kms_auth, "initialize", world.stranger.address, world.stranger.address)


def test_the_implementation_cannot_be_initialised(world: ChainWorld) -> None:
    """The code behind the proxies has no owner and never gets one."""
    bare = contract_at(world.w3, "KmsAuth", deploy_contract(world.w3, world.owner, "KmsAuth"))

    with pytest.raises(RefusedError, match="the contract is initialised already"):
        world.send(world.owner, bare, "initialize", world.owner.address, world.owner.address)


def test_a_zero_owner_is_refused(world: ChainWorld) -> None:
    """A KmsAuth without owner cannot be made."""
    implementation = deploy_contract(world.w3, world.owner, "KmsAuth")
    set_up = encode_call("KmsAuth", "initialize", NOBODY, implementation)

    with pytest.raises(RefusedError, match="owner: want an account"):
        deploy_contract(world.w3, world.owner, "ERC1967Proxy", implementation, set_up)


def test_ownership_moves_in_two_steps(world: ChainWorld) -> None:
    """The new owner rules only after accepting, and the old one no longer then."""
    contract, heir = world.own_kms_auth, world.stranger
    world.send(world.owner, contract, "transferOwnership", heir.address)
    before = contract.functions.owner().call(), contract.functions.pendingOwner().call()

    world.send(heir, contract, "acceptOwnership")

    assert before == (world.owner.address, heir.address)
    assert contract.functions.owner().call() == heir.address
    with pytest.raises(RefusedError, match="want the owner"):
        world.send(world.owner, contract, "addOsImageHash", OS_IMAGE)


def test_ownership_cannot_be_renounced(world: ChainWorld) -> None:
    """A contract without owner could never deny again."""
    with pytest.raises(RefusedError, match="ownership cannot be renounced"):
        world.send(world.owner, world.own_kms_auth, "renounceOwnership")


def test_the_owner_replaces_the_code_and_keeps_the_state(open_gates: ChainWorld) -> None:
    """After an upgrade the lists are what they were, and the upgrade was announced."""
    code = deploy_contract(open_gates.w3, open_gates.owner, "KmsAuth")

    receipt = open_gates.send(open_gates.owner, open_gates.own_kms_auth, "upgradeToAndCall", code, b"")

    assert isinstance(kms_answer(open_gates), Granted)
    assert [name for name, _ in events_of(open_gates.own_kms_auth, receipt)] == [
        "PolicyReplaced",
        "PolicyChanged",
        "Upgraded",
    ]


FACTORY = {
    "deployAndRegisterApp(address,bool,bool,bool,bytes32,bytes32)": ([False, True, False], (False, True)),
    "deployAndRegisterApp(address,bool,bool,bytes32,bytes32)": ([False, True], (True, False)),
}


@pytest.mark.parametrize("function", FACTORY)
def test_the_factory_makes_and_registers_an_app(world: ChainWorld, function: str) -> None:
    """Both forms make a governed app with the wanted policy, and announce it in upstream's order."""
    switches, expected = FACTORY[function]

    receipt = world.send(world.stranger, world.own_kms_auth, function, world.owner.address, *switches, DEVICE, COMPOSE)

    events = events_of(world.own_kms_auth, receipt)
    app = contract_at(world.w3, "AppAuth", events[-1][1]["appId"])
    assert [name for name, _ in events] == ["AppRegistered", "PolicyChanged", "AppDeployedViaFactory"]
    assert events[-1][1]["deployer"] == world.stranger.address
    assert world.own_kms_auth.functions.registeredApps(app.address).call()
    assert app.functions.owner().call() == world.owner.address
    assert (app.functions.allowAnyDevice().call(), app.functions.requireTcbUpToDate().call()) == expected
    assert app.functions.allowedComposeHashes(COMPOSE).call()
    assert app.functions.allowedDeviceIds(DEVICE).call()


def test_the_factory_refuses_a_zero_owner(world: ChainWorld) -> None:
    """Upstream's words for it."""
    with pytest.raises(RefusedError, match=r"^Invalid owner address$"):
        world.send(world.stranger, world.own_kms_auth, next(iter(FACTORY)), NOBODY, False, True, False, DEVICE, COMPOSE)


def test_the_factory_is_closed_without_an_implementation(world: ChainWorld) -> None:
    """A KmsAuth may start without code for apps; then it makes none, in upstream's words."""
    implementation = deploy_contract(world.w3, world.owner, "KmsAuth")
    set_up = encode_call("KmsAuth", "initialize", world.owner.address, NOBODY)
    bare = contract_at(
        world.w3, "KmsAuth", deploy_contract(world.w3, world.owner, "ERC1967Proxy", implementation, set_up)
    )

    with pytest.raises(RefusedError, match=r"^DstackApp implementation not set$"):
        world.send(world.owner, bare, next(iter(FACTORY)), world.owner.address, False, True, False, DEVICE, COMPOSE)
