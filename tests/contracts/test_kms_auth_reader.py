"""Asking KmsAuth: at one settled block, and what cannot be asked is neither yes nor no."""

from __future__ import annotations

import pytest
from web3 import Web3

from dstack.chain.client import ChainClient
from dstack.chain.kms_auth import KmsAuthReader
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy import BlockRef, BootInfo, Denied, Granted, Rule
from dstack.values import Digest32
from tests.chain_world import COMPOSE, DEVICE, OS_IMAGE, ChainWorld

# anvil's default: "finalized" is two epochs of 32 blocks behind.
FINALITY = 64


def open_gates(world: ChainWorld) -> None:
    """The own KmsAuth lets the own app in."""
    world.send(world.owner, world.own_kms_auth, "addOsImageHash", OS_IMAGE)
    world.send(world.owner, world.own_kms_auth, "registerApp", world.own_app_auth.address)


def reader(world: ChainWorld, tag: str) -> KmsAuthReader:
    """Asks the own KmsAuth at this block."""
    return KmsAuthReader(ChainClient(world.chain.rpc_url, block_tag=tag), world.own_kms_auth.address)


def own_boot(world: ChainWorld) -> BootInfo:
    """The boot info of the own app's machine."""
    return world.boot(app_id=Web3.to_bytes(hexstr=world.own_app_auth.address))


def test_a_grant_counts_only_when_it_is_final(world: ChainWorld) -> None:
    """At first only the newest block says yes; 64 blocks later the finalized one does too."""
    world.chain.mine(FINALITY)
    open_gates(world)

    newest, final = (reader(world, tag).authorize_app(own_boot(world)) for tag in ("latest", "finalized"))
    world.chain.mine(FINALITY)
    final_later = reader(world, "finalized").authorize_app(own_boot(world))

    assert (type(newest), type(final), type(final_later)) == (Granted, Denied, Granted)


def test_a_decision_names_the_block_it_rests_on(world: ChainWorld) -> None:
    """Number, hash and time are those of the block on the chain."""
    open_gates(world)

    decision = reader(world, "latest").authorize_app(own_boot(world))

    block = world.w3.eth.get_block("latest")
    assert decision == Granted(BlockRef(block["number"], Digest32(bytes(block["hash"])), block["timestamp"]))


def test_a_block_that_is_gone_is_not_asked(world: ChainWorld) -> None:
    """After a reorganisation the old block's hash leads to no answer instead of the new block's."""
    client = ChainClient(world.chain.rpc_url, block_tag="latest")
    snapshot = world.chain.snapshot()
    world.chain.mine()
    gone = client.block()
    world.chain.revert(snapshot)
    world.warp_to(gone.timestamp + 7)

    with pytest.raises(ChainUnavailableError, match="eth_call: "):
        client.call(world.own_kms_auth.address, b"", gone)


def test_no_contract_at_the_address_is_neither_yes_nor_no(world: ChainWorld) -> None:
    """The error names address and block; a decision is not made of an empty answer."""
    elsewhere = KmsAuthReader(ChainClient(world.chain.rpc_url, block_tag="latest"), world.stranger.address)

    for ask in (elsewhere.authorize_app, elsewhere.authorize_kms, lambda _: elsewhere.gateway_app_id()):
        with pytest.raises(ChainUnavailableError, match=f"no contract at {world.stranger.address} in latest block"):
            ask(world.boot())


def test_another_contract_at_the_address_is_neither_yes_nor_no(world: ChainWorld) -> None:
    """What answers out of form is not a KmsAuth."""
    address = world.place_code(bytes.fromhex("60205ff3"))
    elsewhere = KmsAuthReader(ChainClient(world.chain.rpc_url, block_tag="latest"), address)

    with pytest.raises(ChainUnavailableError, match=f"the contract at {address} does not answer as one"):
        elsewhere.authorize_app(world.boot())


def test_a_contract_that_reverts_denies(world: ChainWorld) -> None:
    """A revert is the contract's word: no."""
    address = world.place_code(bytes.fromhex("5f5ffd"))
    elsewhere = KmsAuthReader(ChainClient(world.chain.rpc_url, block_tag="latest"), address)

    decision = elsewhere.authorize_kms(world.boot())

    assert decision == Denied(Rule.OTHER, "", "isKmsAllowed reverted", decision.block)


def test_settings_that_lead_to_a_kms_auth_pass(world: ChainWorld) -> None:
    """The check at a program's start gives the block in which it held."""
    assert reader(world, "latest").check(chain_id=31337).number == world.w3.eth.block_number
    assert reader(world, "latest").chain_id == 31337


def test_wrong_settings_are_named(world: ChainWorld) -> None:
    """Another chain, no contract, one of another kind, and one that is not final yet are told apart."""
    client = ChainClient(world.chain.rpc_url, block_tag="latest")

    with pytest.raises(ConfigError, match="chain id: want 1, got 31337"):
        reader(world, "latest").check(chain_id=1)
    with pytest.raises(ConfigError, match=f"KmsAuth: no contract at {world.stranger.address} in latest block"):
        KmsAuthReader(client, world.stranger.address).check()
    for address in (world.operator.address, world.place_code(bytes.fromhex("00"))):
        with pytest.raises(ConfigError, match=f"the contract at {address} does not answer to IAppAuth"):
            KmsAuthReader(client, address).check()
    with pytest.raises(ConfigError, match="in finalized block 0"):
        reader(world, "finalized").check()


def test_each_denial_shows_what_its_rule_judged(world: ChainWorld) -> None:
    """Compose hash and device of the app stand in the answer."""
    open_gates(world)
    world.send(world.owner, world.own_app_auth, "removeDevice", DEVICE)
    device = reader(world, "latest").authorize_app(own_boot(world))
    world.send(world.owner, world.own_app_auth, "removeComposeHash", COMPOSE)
    compose = reader(world, "latest").authorize_app(own_boot(world))

    assert [(answer.rule, answer.got) for answer in (device, compose) if isinstance(answer, Denied)] == [
        (Rule.DEVICE, DEVICE.hex()),
        (Rule.COMPOSE_HASH, COMPOSE.hex()),
    ]
