"""AppAuth: its gates, its switches, and what the owner can and cannot do."""

from __future__ import annotations

from typing import Any

import pytest

from dstack.chain.bindings import contract_at, encode_call
from dstack.chain.deploy import deploy_contract
from dstack.errors import RefusedError
from dstack.values import ComposeHash, DeviceId
from tests.chain_world import APP_INITIALIZE, COMPOSE, DEVICE, ChainWorld, events_of

ZERO = bytes(32)
NOBODY = "0x" + "00" * 20
OTHER_DEVICE = DeviceId(b"\x0d" * 32)
OLD_INITIALIZE = "initialize(address,bool,bool,bytes32,bytes32)"


def answer(world: ChainWorld, **changes: Any) -> tuple[bool, str]:
    """What the own AppAuth itself says."""
    allowed, reason = world.own_app_auth.functions.isAppAllowed(world.boot(**changes).abi_tuple()).call()
    return allowed, reason


def fresh_app(world: ChainWorld, function: str, *arguments: Any) -> Any:
    """A new AppAuth proxy, set up by this call."""
    code = encode_call("AppAuth", function, *arguments)
    implementation = world.deployment.app_implementation
    return contract_at(
        world.w3, "AppAuth", deploy_contract(world.w3, world.owner, "ERC1967Proxy", implementation, code)
    )


def test_a_listed_configuration_on_a_listed_device_is_allowed(world: ChainWorld) -> None:
    """Everything as listed is a yes without words."""
    assert answer(world) == (True, "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tcb_status": "SWHardeningNeeded"}, "TCB status is not up to date"),
        ({"tcb_status": "UpToDate "}, "TCB status is not up to date"),
        ({"compose_hash": ComposeHash(ZERO)}, "Compose hash not allowed"),
        ({"device_id": OTHER_DEVICE}, "Device not allowed"),
        ({"compose_hash": ComposeHash(ZERO), "device_id": OTHER_DEVICE}, "Compose hash not allowed"),
        ({"tcb_status": "", "compose_hash": ComposeHash(ZERO)}, "TCB status is not up to date"),
    ],
)
def test_each_gate_closes_alone_and_in_order(world: ChainWorld, change: dict[str, Any], reason: str) -> None:
    """TCB, compose hash, device: the first that does not hold is named in upstream's words."""
    assert answer(world, **change) == (False, reason)


def test_removed_values_are_denied(world: ChainWorld) -> None:
    """A removed compose hash, and a removed device, close their gate."""
    world.send(world.owner, world.own_app_auth, "removeDevice", DEVICE)
    without_device = answer(world)
    world.send(world.owner, world.own_app_auth, "removeComposeHash", COMPOSE)

    assert (without_device, answer(world)) == ((False, "Device not allowed"), (False, "Compose hash not allowed"))


def test_any_device_can_be_let_in_and_shut_out(world: ChainWorld) -> None:
    """The switch opens the device gate for unlisted devices, and closes it again."""
    world.send(world.owner, world.own_app_auth, "setAllowAnyDevice", True)
    opened = answer(world, device_id=OTHER_DEVICE)
    world.send(world.owner, world.own_app_auth, "setAllowAnyDevice", False)

    assert (opened, answer(world, device_id=OTHER_DEVICE)) == ((True, ""), (False, "Device not allowed"))


def test_an_outdated_tcb_can_be_tolerated(world: ChainWorld) -> None:
    """Without the requirement any TCB status passes."""
    world.send(world.owner, world.own_app_auth, "setRequireTcbUpToDate", False)

    assert answer(world, tcb_status="OutOfDate") == (True, "")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("addComposeHash", [COMPOSE]),
        ("removeComposeHash", [COMPOSE]),
        ("addDevice", [DEVICE]),
        ("removeDevice", [DEVICE]),
        ("setAllowAnyDevice", [True]),
        ("setRequireTcbUpToDate", [False]),
        ("disableUpgrades", []),
        ("transferOwnership", ["0x" + "22" * 20]),
        ("upgradeToAndCall", ["0x" + "22" * 20, b""]),
    ],
)
def test_only_the_owner_changes_anything(world: ChainWorld, function: str, arguments: list[Any]) -> None:
    """A stranger is refused by every function that changes policy, owner or code."""
    with pytest.raises(RefusedError, match=f"{world.stranger.address}: want the owner"):
        world.send(world.stranger, world.own_app_auth, function, *arguments)


@pytest.mark.parametrize("function", ["addComposeHash", "addDevice"])
def test_zero_is_never_allowed(world: ChainWorld, function: str) -> None:
    """No list takes zero, so that an absent value can never match."""
    with pytest.raises(RefusedError, match="want a hash, device or contract, got zero"):
        world.send(world.owner, world.own_app_auth, function, ZERO)


def test_ownership_cannot_be_renounced(world: ChainWorld) -> None:
    """An app without owner could never be denied again."""
    with pytest.raises(RefusedError, match="ownership cannot be renounced"):
        world.send(world.owner, world.own_app_auth, "renounceOwnership")


def test_upgrades_can_be_given_up_for_good(world: ChainWorld) -> None:
    """The owner replaces the code until it disables that; then nobody can, in upstream's words."""
    code = world.deployment.app_implementation
    upgraded = world.send(world.owner, world.own_app_auth, "upgradeToAndCall", code, b"")
    world.send(world.owner, world.own_app_auth, "disableUpgrades")

    assert [name for name, _ in events_of(world.own_app_auth, upgraded)] == [
        "PolicyReplaced",
        "PolicyChanged",
        "Upgraded",
    ]
    with pytest.raises(RefusedError, match=r"^Upgrades are permanently disabled$"):
        world.send(world.owner, world.own_app_auth, "upgradeToAndCall", code, b"")


def test_the_old_initialiser_tolerates_any_tcb(world: ChainWorld) -> None:
    """Upstream's five-argument form means what it meant: no TCB requirement."""
    app = fresh_app(world, OLD_INITIALIZE, world.owner.address, False, True, DEVICE, COMPOSE)

    state = [getattr(app.functions, name)().call() for name in ("requireTcbUpToDate", "allowAnyDevice", "version")]
    assert state == [False, True, 2]


def test_zero_first_values_mean_none(world: ChainWorld) -> None:
    """An app set up without device and compose hash lists neither, least of all zero."""
    app = fresh_app(world, APP_INITIALIZE, world.owner.address, False, True, False, ZERO, ZERO)

    assert not app.functions.allowedComposeHashes(ZERO).call()
    assert not app.functions.allowedDeviceIds(ZERO).call()


def test_upgrades_can_be_disabled_from_the_start(world: ChainWorld) -> None:
    """The switch of the initialiser is the same as the function."""
    app = fresh_app(world, APP_INITIALIZE, world.owner.address, True, True, False, DEVICE, COMPOSE)

    with pytest.raises(RefusedError, match=r"^Upgrades are permanently disabled$"):
        world.send(world.owner, app, "upgradeToAndCall", world.deployment.app_implementation, b"")


@pytest.mark.parametrize("function", [APP_INITIALIZE, OLD_INITIALIZE])
def test_an_app_is_initialised_once(world: ChainWorld, function: str) -> None:
    """Neither form can set up a proxy again, nor the implementation at all."""
    switches = [False] * (3 if function == APP_INITIALIZE else 2)
    bare = contract_at(world.w3, "AppAuth", world.deployment.app_implementation)

    for contract in (world.own_app_auth, bare):
        with pytest.raises(RefusedError, match="the contract is initialised already"):
            world.send(world.owner, contract, function, world.stranger.address, *switches, DEVICE, COMPOSE)


def test_a_zero_owner_is_refused(world: ChainWorld) -> None:
    """Upstream's words for it."""
    with pytest.raises(RefusedError, match=r"^invalid owner address$"):
        fresh_app(world, APP_INITIALIZE, NOBODY, False, True, False, DEVICE, COMPOSE)
