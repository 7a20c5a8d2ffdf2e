"""One chain endpoint lies, one hangs, one is killed and started again: no answer is wrong, and none is missing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from web3 import Web3

from dstack.chain.endpoints import Endpoints
from dstack.chain.kms_auth import KmsAuthReader
from dstack.devnet.anvil import Anvil
from dstack.devnet.fault_run import Tally, ask_among_faults
from dstack.devnet.faulty_endpoints import faulty_endpoints
from dstack.policy import BootInfo
from dstack.values import AppId, ComposeHash, InstanceId
from tests.chain_world import OS_IMAGE, ChainWorld, chain_world

VERSIONS = [ComposeHash(bytes([number]) * 32) for number in range(1, 4)]
COUNT = 600


class Changing:
    """The app's versions, each allowed and taken back in turn; remembers at which block which was."""

    def __init__(self, world: ChainWorld) -> None:
        self._world = world
        self._allowed_from: dict[ComposeHash, list[tuple[int, bool]]] = {version: [(0, False)] for version in VERSIONS}
        self._turn = 0
        self._lock = threading.Lock()

    def change(self) -> None:
        """Allow or take back the version whose turn it is."""
        version = VERSIONS[self._turn % len(VERSIONS)]
        self._turn += 1
        allow = not self._allowed_from[version][-1][1]
        function = "addComposeHash" if allow else "removeComposeHash"
        with self._lock:
            receipt = self._world.send(self._world.owner, self._world.own_app_auth, function, version)
            self._allowed_from[version].append((receipt["blockNumber"], allow))

    def truth(self, boot: BootInfo, block: int) -> bool:
        """Whether the machine's version was allowed in the state of that block."""
        with self._lock:
            return [allowed for since, allowed in self._allowed_from[boot.compose_hash] if since <= block][-1]


@pytest.fixture(scope="module")
def world() -> Iterator[ChainWorld]:
    """A chain where the own app may run, in no version yet."""
    with Anvil.start() as chain:
        made = chain_world(chain)
        made.send(made.owner, made.own_kms_auth, "addOsImageHash", OS_IMAGE)
        made.send(made.owner, made.own_kms_auth, "registerApp", made.own_app_auth.address)
        yield made


def boots(world: ChainWorld) -> list[BootInfo]:
    """Machines of every version, several of each."""
    app_id = AppId(Web3.to_bytes(hexstr=world.own_app_auth.address))
    return [
        world.boot(app_id=app_id, compose_hash=version, instance_id=InstanceId(bytes([number]) * 20))
        for number in range(1, 12)
        for version in VERSIONS
    ]


def run(world: ChainWorld, endpoint_count: int, count: int) -> tuple[Tally, dict[str, str]]:
    """Ask among faults; what came of it, and what is wrong with which endpoint."""
    changing = Changing(world)
    for _ in VERSIONS[:2]:
        changing.change()
    with faulty_endpoints(world.chain.rpc_url, endpoint_count) as endpoints:
        urls = [endpoint.url for endpoint in endpoints]
        with closing(Endpoints(urls, block_tag="latest", chain_id=31337, head_seconds=0.1)) as reader:
            kms_auth = KmsAuthReader(reader, world.own_kms_auth.address)
            tally = ask_among_faults(
                kms_auth, endpoints, boots(world), changing.truth, count=count, change=changing.change
            )
            complaints = [reader.complaints[url] for url in urls]
    return tally, dict(zip(("lies", "hangs", "dies"), complaints, strict=False))


def test_no_answer_is_wrong_and_none_is_missing(world: ChainWorld) -> None:
    """With four honest endpoints of seven every question is answered, each as the chain had it at the named block."""
    tally, complaints = run(world, 7, COUNT)

    assert tally.wrong == []
    assert (sum(tally.right.values()) + tally.unavailable, tally.unavailable) == (COUNT, 0)
    assert min(tally.right["granted"], tally.right["denied"]) > 0
    assert tally.cut > 0
    assert "" not in (complaints["lies"], complaints["hangs"])


def test_too_few_honest_endpoints_answer_nothing_wrong(world: ChainWorld) -> None:
    """With one honest endpoint of four, and one that comes and goes, there is no answer; above all no wrong one."""
    tally, _ = run(world, 4, 40)

    assert tally.wrong == []
    assert tally.unavailable > 0
