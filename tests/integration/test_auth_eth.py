"""The auth server for Ethereum as a program, asked by our KMS's webhook client, before a real chain."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from web3 import Web3

from dstack.devnet.anvil import Anvil
from dstack.devnet.http import wait_for
from dstack.devnet.programs import Program, Programs, free_port
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy import Denied, Granted
from dstack.policy.decision import NO_BLOCK
from dstack.values import AppId
from kms.auth_eth import opened_decider
from kms.webhook import WebhookAuthority
from tests.chain_world import COMPOSE, OS_IMAGE, ChainWorld, chain_world


@pytest.fixture(scope="module")
def world() -> Iterator[ChainWorld]:
    """A chain whose own app is allowed."""
    with Anvil.start() as chain:
        made = chain_world(chain)
        made.send(made.owner, made.own_kms_auth, "addOsImageHash", OS_IMAGE)
        made.send(made.owner, made.own_kms_auth, "registerApp", made.own_app_auth.address)
        made.send(made.owner, made.own_kms_auth, "setGatewayAppId", "gateway")
        yield made


@pytest.fixture
def program(world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Program, str]]:
    """The running program, and where it answers."""
    port = free_port()
    monkeypatch.setenv("PORT", str(port))
    monkeypatch.setenv("ETH_RPC_URL", world.chain.rpc_url + "/?key=secret")
    monkeypatch.setenv("KMS_CONTRACT_ADDR", world.own_kms_auth.address)
    monkeypatch.setenv("ETH_CHAIN_ID", "31337")
    monkeypatch.setenv("ETH_BLOCK_TAG", "latest")
    with Programs(tmp_path) as programs:
        program = programs.start("auth", "kms.auth_eth")
        wait_for(f"http://127.0.0.1:{port}/health", program, seconds=30)
        yield program, f"http://127.0.0.1:{port}"


@pytest.fixture
def url(program: tuple[Program, str]) -> str:
    """Where the running program answers."""
    return program[1]


def test_the_contracts_answer_in_upstreams_form(world: ChainWorld, url: str) -> None:
    """A grant, the contract's reason for a denial, zeros for what is empty, and what the KMS publishes."""
    boot = world.boot(app_id=AppId(Web3.to_bytes(hexstr=world.own_app_auth.address)))
    with closing(WebhookAuthority(url)) as authority:
        allowed = authority.authorize_app(boot)
        denied = authority.authorize_kms(boot)
        other = authority.authorize_app(replace(boot, instance_id=None, compose_hash=type(COMPOSE)(bytes(32))))
    assert allowed == Granted(NO_BLOCK, gateway_app_id="gateway")
    assert [answer.reason for answer in (denied, other) if isinstance(answer, Denied)] == [
        "Aggregated MR not allowed",
        "Compose hash not allowed",
    ]
    answer = httpx.post(f"{url}/bootAuth/app", content=boot.to_json())
    assert answer.json() == {"isAllowed": True, "reason": "", "gatewayAppId": "gateway"}
    bad = [
        httpx.post(f"{url}/bootAuth/app", json={**json.loads(boot.to_json()), "appId": wrong})
        for wrong in ("zz", "00" * 21)
    ]
    expected = {"isAllowed": False, "reason": "invalid authorization request", "gatewayAppId": ""}
    assert [(one.status_code, one.json()) for one in bad] == [(400, expected)] * 2
    about = httpx.get(url).json()
    implementation = about.pop("appImplementation")
    assert Web3.is_address(implementation)
    assert about == {
        "status": "ok",
        "kmsContractAddr": world.own_kms_auth.address,
        "ethRpcUrl": world.chain.rpc_url,
        "gatewayAppId": "gateway",
        "chainId": 31337,
        "appAuthImplementation": implementation,
    }


def test_a_chain_that_cannot_be_asked_is_a_no_with_upstreams_words(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 200, not allowed; what it publishes is not to be had."""
    port = free_port()
    monkeypatch.setenv("PORT", str(port))
    monkeypatch.setenv("ETH_RPC_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("KMS_CONTRACT_ADDR", world.own_kms_auth.address)
    with Programs(tmp_path) as programs:
        program = programs.start("auth", "kms.auth_eth")
        wait_for(f"http://127.0.0.1:{port}/health", program, seconds=30)
        answer = httpx.post(f"http://127.0.0.1:{port}/bootAuth/app", content=world.boot().to_json())
        with (
            closing(WebhookAuthority(f"http://127.0.0.1:{port}")) as authority,
            pytest.raises(ChainUnavailableError, match="answers with HTTP status 500"),
        ):
            authority.check()

    expected = {"isAllowed": False, "reason": "authorization backend unavailable", "gatewayAppId": ""}
    assert (answer.status_code, answer.json()) == (200, expected)


CONTRACT = "0x" + "c0" * 20


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "KMS_CONTRACT_ADDR: want 0x and 40 hexadecimal digits, not all zero"),
        ({"KMS_CONTRACT_ADDR": CONTRACT, "ETH_RPC_URL": "ws://x"}, "ETH_RPC_URL: want an http or https URL"),
        ({"KMS_CONTRACT_ADDR": CONTRACT, "ETH_CHAIN_ID": "main"}, "ETH_CHAIN_ID: "),
        (
            {"KMS_CONTRACT_ADDR": CONTRACT, "ETH_BLOCK_TAG": "latest"},
            "ETH_BLOCK_TAG: block_tag: want finalized, except",
        ),
        (
            {"KMS_CONTRACT_ADDR": CONTRACT, "ETH_FINALITY_CONFIRMATIONS": "65"},
            "ETH_FINALITY_CONFIRMATIONS: want 0 to 64",
        ),
    ],
)
def test_a_wrong_variable_is_named(environment: dict[str, str], words: str) -> None:
    """The program does not start."""
    with pytest.raises(ConfigError, match=words), opened_decider(environment):
        pass


def test_what_it_opened_is_closed(world: ChainWorld) -> None:
    """Neither a thread nor a connection to an endpoint outlives it, whatever it was asked."""
    environment = {
        "KMS_CONTRACT_ADDR": world.own_kms_auth.address,
        "ETH_RPC_URL": world.chain.rpc_url,
        "ETH_CHAIN_ID": "31337",
        "ETH_BLOCK_TAG": "latest",
    }
    port = int(world.chain.rpc_url.rpartition(":")[2])
    before, connected = set(threading.enumerate()), connections_to(port)
    with opened_decider(environment) as decider:
        assert decider.about()["kmsContractAddr"] == world.own_kms_auth.address
        during = {thread.name for thread in set(threading.enumerate()) - before}, connections_to(port)

    assert (any(name.startswith("chain") for name in during[0]), during[1] > connected) == (True, True)
    assert (set(threading.enumerate()) - before, connections_to(port)) == (set(), connected)


def connections_to(port: int) -> int:
    """How many TCP connections of this process lead to a port of this machine."""
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            inodes.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(f":{port:04X}") and line[9] in inodes for line in lines)


def test_it_ends_when_it_is_told_to(program: tuple[Program, str]) -> None:
    """SIGTERM ends the program with code 0, also when it has asked the chain; closing says nothing."""
    running, url = program
    assert httpx.get(url).status_code == 200

    running.stop()
    assert (running.process.returncode, "Traceback" in running.log.read_text()) == (0, False)
