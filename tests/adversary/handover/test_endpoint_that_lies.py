"""Attack: one of three chain endpoints lies, lags behind, or is on a fork of its own; or all say different things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dstack.chain.operator import Kind, deny_call
from dstack.errors import ChainUnavailableError, ConfigError, KeyReleaseDeniedError
from replicator.documents import serialise_request
from tests.law_world import Batch, LawWorld, go_between
from tests.worlds import SECRET, app_compose, place_genesis, receive

OLD, NEW = app_compose("notes:old"), app_compose("notes:new")
NO = "0x" + bytes(32).hex() + (64).to_bytes(32, "big").hex()
YES = "0x" + (1).to_bytes(32, "big").hex() + (64).to_bytes(32, "big").hex() + bytes(32).hex()


def lie(asked: Batch, told: Batch) -> Batch:
    """Say yes to every question whose answer is yes or no with a reason."""
    calls = {each["id"] for each in asked if each["method"] == "eth_call"}
    for each in told:
        result = each.get("result")
        if each["id"] in calls and isinstance(result, str) and result.startswith(NO):
            each["result"] = YES
    return told


def fork(asked: Batch, told: Batch) -> Batch:
    """Have blocks of another fork."""
    for each in told:
        if isinstance(each.get("result"), dict) and "hash" in each["result"]:
            each["result"]["hash"] = "0x" + "f0" * 32
    return told


def stand_at(block: int) -> Any:
    """Have never heard of anything later than *block*."""

    def ask(asked: Batch) -> Batch:
        for each in asked:
            if each["method"] == "eth_getBlockByNumber" and each["params"][0] in ("latest", "finalized"):
                each["params"][0] = hex(block)
        return asked

    return ask


@contextmanager
def three_endpoints(law: LawWorld, *changes: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Three different URLs of the chain; each may change what passes."""
    with ExitStack() as stack:
        yield tuple(
            stack.enter_context(go_between(law.chain.chain.rpc_url, **change)) for change in (*changes, {}, {}, {})[:3]
        )


def hand_over(law: LawWorld, folder: Path, urls: tuple[str, ...]) -> bytes:
    """The old node asks *urls*; the new node asks the chain itself."""
    settings = replace(law.settings, rpc_urls=urls)
    old = law.node(folder / "old", law.machine(folder / "old", OLD), settings=settings)
    new = law.node(folder / "new", law.machine(folder / "new", NEW))
    place_genesis(old)
    receive(new, old.onboard(serialise_request(new.request_key()).encode()))
    return new.around.secure_file.path.read_bytes()


@pytest.fixture
def unlisted(law: LawWorld) -> LawWorld:
    """Only the old node's version is in force."""
    law.chain.grant(law.version(1, OLD))
    return law


@pytest.fixture
def listed(law: LawWorld) -> LawWorld:
    """Both versions are in force."""
    law.chain.grant(law.version(1, OLD), law.version(2, NEW))
    return law


def test_a_single_lying_endpoint_would_be_believed(unlisted: LawWorld, tmp_path: Path) -> None:
    """The lie below is a good one: a node that asks the liar alone seals for an unlisted node (docs say so)."""
    with go_between(unlisted.chain.chain.rpc_url, tell=lie) as url:
        settings = replace(unlisted.settings, rpc_urls=(url,))
        old = unlisted.node(tmp_path / "old", unlisted.machine(tmp_path / "old", OLD), settings=settings)
        new = unlisted.node(tmp_path / "new", unlisted.machine(tmp_path / "new", NEW))
        place_genesis(old)

        old.onboard(serialise_request(new.request_key()).encode())


def test_one_liar_of_three_changes_nothing(unlisted: LawWorld, tmp_path: Path) -> None:
    """An unlisted node is denied though one endpoint says yes."""
    with (
        three_endpoints(unlisted, {"tell": lie}) as urls,
        pytest.raises(KeyReleaseDeniedError, match="new node: Compose hash not allowed"),
    ):
        hand_over(unlisted, tmp_path, urls)


def test_one_fork_of_three_changes_nothing(listed: LawWorld, tmp_path: Path) -> None:
    """An endpoint on a fork of its own is outvoted."""
    with three_endpoints(listed, {"tell": fork}) as urls:
        assert hand_over(listed, tmp_path, urls) == SECRET


def test_one_lagging_endpoint_does_not_hide_a_denial(listed: LawWorld, tmp_path: Path) -> None:
    """What was denied after the block that one endpoint stands at is denied."""
    before = listed.chain.w3.eth.block_number
    compose = listed.machine(tmp_path / "look", NEW).booted.app_compose.compose_hash
    denial = listed.chain.on_app(Kind.COMPOSE_HASH, compose)
    listed.chain.call(deny_call(listed.chain.deployment.operator, [denial]))

    with (
        three_endpoints(listed, {"ask": stand_at(before)}) as urls,
        pytest.raises(KeyReleaseDeniedError, match="Compose hash not allowed"),
    ):
        hand_over(listed, tmp_path, urls)


def test_when_most_lag_the_one_that_has_gone_on_can_still_deny(listed: LawWorld, tmp_path: Path) -> None:
    """A denial in a newer block counts though only one endpoint has that block."""
    before = listed.chain.w3.eth.block_number
    compose = listed.machine(tmp_path / "look", NEW).booted.app_compose.compose_hash
    denial = listed.chain.on_app(Kind.COMPOSE_HASH, compose)
    listed.chain.call(deny_call(listed.chain.deployment.operator, [denial]))
    lagging = {"ask": stand_at(before)}

    with (
        three_endpoints(listed, {}, lagging, lagging) as urls,
        pytest.raises(KeyReleaseDeniedError, match="Compose hash not allowed"),
    ):
        hand_over(listed, tmp_path, urls)


def test_disagreement_is_neither_yes_nor_no(listed: LawWorld, tmp_path: Path) -> None:
    """Where no two endpoints say the same, the node could not ask, and hands nothing over."""
    first, second = ({"tell": _fork_named(name)} for name in ("aa", "bb"))

    with three_endpoints(listed, first, second) as urls, pytest.raises(ChainUnavailableError, match="want 2 of 3"):
        hand_over(listed, tmp_path, urls)


def test_another_chain_under_the_settings_url_stops_the_start(listed: LawWorld, tmp_path: Path) -> None:
    """An endpoint of another chain, or another owner of the contract, is noticed before anybody asks."""
    law = replace(listed.settings.law, chain_id=1)
    with pytest.raises((ConfigError, ChainUnavailableError), match="chain"):
        listed.node(tmp_path / "old", listed.machine(tmp_path / "old", OLD), settings=replace(listed.settings, law=law))

    foreign = replace(listed.settings.law, contract=type(law.contract).from_hex(listed.chain.own_kms_auth.address))
    with pytest.raises(ConfigError, match="is not owned by UpgradeOperator"):
        listed.node(
            tmp_path / "old", listed.machine(tmp_path / "old2", OLD), settings=replace(listed.settings, law=foreign)
        )


def test_a_chain_that_stands_still_is_noticed(listed: LawWorld, tmp_path: Path) -> None:
    """A block that is older than the settings allow is no answer."""
    settings = replace(listed.settings, max_age=timedelta(hours=1))

    with pytest.raises(ChainUnavailableError, match=r"in the future|old, want at most"):
        listed.node(tmp_path / "old", listed.machine(tmp_path / "old", OLD), settings=settings)


def _fork_named(name: str) -> Any:
    def tell(asked: Batch, told: Batch) -> Batch:
        for each in told:
            if isinstance(each.get("result"), dict) and "hash" in each["result"]:
                each["result"]["hash"] = "0x" + name * 32
        return told

    return tell
