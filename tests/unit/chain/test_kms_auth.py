"""KmsAuth over several endpoints: a denial from any of them that is on the chain is the decision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from dstack.chain import facts as facts_module
from dstack.chain.endpoints import Endpoints
from dstack.chain.kms_auth import KmsAuthReader
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy import Denied, Granted, Rule
from dstack.policy.key_epochs import FIRST_EPOCH, KeyEpochs
from tests.rpc_nodes import TARGET, Node, block_at, running
from tests.unit.chain.conftest import BOOT

IMPLEMENTATION = "0x" + "22" * 20
GRANTED = Granted(block_at(100), gateway_app_id="gateway 100")


def kms_auth(
    *, denies_from: int | None = None, epochs: tuple[int, int, int] = (0, 0, 0)
) -> Callable[[bytes, int], bytes]:
    """A contract that allows everything, until it denies."""

    def say(data: bytes, number: int) -> bytes:
        if data[:4] == keccak(text="gatewayAppId()")[:4]:
            return encode(["string"], [f"gateway {number}"])
        if data[:4] == keccak(text="appImplementation()")[:4]:
            return encode(["address"], [IMPLEMENTATION])
        if data[:4] == keccak(text="keyEpoch()")[:4]:
            return encode(["uint64"] * 3, epochs)
        if data[:4] == keccak(text="supportsInterface(bytes4)")[:4]:
            return encode(["bool"], [True])
        if denies_from is not None and number >= denies_from:
            return encode(["bool", "string"], [False, Rule.COMPOSE_HASH.value])
        return encode(["bool", "string"], [True, ""])

    return say


@contextmanager
def asking(*nodes: Node) -> Iterator[KmsAuthReader]:
    """A reader over running nodes."""
    with running(*nodes):
        endpoints = Endpoints([node.url for node in nodes], head_seconds=0)
        with closing(endpoints), closing(KmsAuthReader(endpoints, TARGET)) as reader:
            yield reader


def test_what_enough_endpoints_allow_is_granted() -> None:
    """The grant names the block they agree on, and for an app the gateway in its state."""
    with asking(*(Node(say=kms_auth()) for _ in range(3))) as reader:
        assert (reader.authorize_app(BOOT), reader.authorize_kms(BOOT)) == (GRANTED, Granted(block_at(100)))


@pytest.mark.parametrize(
    ("told", "epochs"),
    [
        ((0, 0, 0), FIRST_EPOCH),
        ((3, 2, 1_800_000_000), KeyEpochs(3, datetime(2027, 1, 15, 8, tzinfo=UTC))),
        ((1, 0, 2**64 - 1), KeyEpochs(1, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))),
    ],
)
def test_a_grant_names_the_key_epochs(told: tuple[int, int, int], epochs: KeyEpochs) -> None:
    """Those of the same block."""
    with asking(*(Node(say=kms_auth(epochs=told)) for _ in range(3))) as reader:
        assert reader.authorize_app(BOOT) == replace(GRANTED, epochs=epochs)


def test_epochs_out_of_order_are_no_answer() -> None:
    """The epoch before is the one before; anything else is neither yes nor no."""
    with (
        asking(*(Node(say=kms_auth(epochs=(3, 1, 0))) for _ in range(3))) as reader,
        pytest.raises(ChainUnavailableError, match="does not answer as one"),
    ):
        reader.authorize_app(BOOT)


def test_one_endpoint_that_lies_denies_nothing() -> None:
    """In the state of one block the greater number is right."""
    with asking(Node(say=kms_auth()), Node(say=kms_auth()), Node(say=kms_auth(denies_from=0))) as reader:
        assert reader.authorize_app(BOOT) == GRANTED


def test_a_denial_at_a_newer_block_wins() -> None:
    """The endpoint that is first to have the block with the denial decides, and the denial names that block."""
    say = kms_auth(denies_from=103)
    with asking(Node(say=say), Node(say=say), Node(head=103, say=say)) as reader:
        assert reader.authorize_app(BOOT) == Denied(
            Rule.COMPOSE_HASH, BOOT.compose_hash.hex(), Rule.COMPOSE_HASH.value, block_at(103)
        )


def test_a_grant_at_a_newer_block_does_not_count() -> None:
    """What enough endpoints deny stays denied, whatever one of them says of later."""
    say = lambda data, number: kms_auth(denies_from=None if number > 100 else 0)(data, number)  # noqa: E731
    with asking(Node(say=say), Node(say=say), Node(head=103, say=say)) as reader:
        assert reader.authorize_app(BOOT) == Denied(
            Rule.COMPOSE_HASH, BOOT.compose_hash.hex(), Rule.COMPOSE_HASH.value, block_at(100)
        )


@pytest.mark.parametrize("said", [b"?", encode(["uint256"] * 3, [0, 64, 1 << 255])], ids=["short", "endless"])
def test_a_newer_answer_out_of_form_does_not_count(said: bytes) -> None:
    """Only a denial that can be read is one."""
    say = lambda data, number: said if number > 100 else kms_auth()(data, number)  # noqa: E731
    with asking(Node(say=say), Node(say=say), Node(head=103, say=say)) as reader:
        assert reader.authorize_app(BOOT) == GRANTED


def test_recent_facts_never_wait() -> None:
    """Before anything was read there are none; with every endpoint silent the last ones stand, with their age."""
    nodes = [Node(say=kms_auth()) for _ in range(2)]
    with asking(*nodes) as reader:
        reader.check(chain_id=1)
        for node in nodes:
            node.hang.set()
        answered = threading.Event()
        facts = []
        threading.Thread(target=lambda: (facts.append(reader.recent_facts()), answered.set())).start()

        assert answered.wait(1.5)
        assert (facts[0].chain_id, facts[0].gateway_app_id, facts[0].app_implementation, facts[0].block) == (
            1,
            "gateway 100",
            IMPLEMENTATION,
            block_at(100),
        )
        assert 0 <= facts[0].age_seconds < 10


def test_old_facts_are_read_anew_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that finds them old still gets them, and a later one gets the new ones."""
    monkeypatch.setattr(facts_module, "FACTS_SECONDS", 0.0)
    node = Node(say=kms_auth())
    with asking(node) as reader:
        reader.check()
        node.head = 105
        seen = [reader.recent_facts()]
        while seen[-1].gateway_app_id != "gateway 105":
            threading.Event().wait(0.01)
            seen.append(reader.recent_facts())

        assert seen[0].gateway_app_id == "gateway 100"


def test_facts_are_read_again_when_there_was_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that gives no thread for a moment does not leave the facts as they were for ever."""

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    was_read = threading.Event()

    def read() -> facts_module.Facts:
        was_read.set()
        raise ChainUnavailableError("none")

    with closing(facts_module.KeptFacts(read)) as facts:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            assert facts.recent() is None
        facts.recent()

        assert was_read.wait(30)


def test_facts_that_were_never_read_are_none() -> None:
    """Nothing is made up for a chain that could not be asked."""
    node = Node(raw=b"?")
    with asking(node) as reader:
        assert reader.recent_facts() is None


def test_settings_are_checked_with_every_endpoint() -> None:
    """Another chain, or no contract, is a wrong setting; endpoints that differ are no answer."""
    with asking(Node(say=kms_auth()), Node(say=kms_auth())) as reader:
        with pytest.raises(ConfigError, match="chain id: want 5, got 1"):
            reader.check(chain_id=5)
        assert reader.check(chain_id=1) == block_at(100)
    silence = lambda _data, _number: b""  # noqa: E731
    pair = asking(Node(say=kms_auth()), Node(say=silence))
    with pair as reader, pytest.raises(ChainUnavailableError, match="the answer: want 2 of 2 endpoints to agree"):
        reader.check()
    with asking(Node(say=silence)) as reader, pytest.raises(ConfigError, match="no contract at 0x11111111111111111111"):
        reader.check()


def test_a_reader_that_is_closed_has_nothing_running() -> None:
    """What is asked beside the callers has ended when `close` returns, and nothing begins after that."""
    node = Node(say=kms_auth())
    with running(node), closing(Endpoints([node.url], head_seconds=0)) as endpoints:
        reader = KmsAuthReader(endpoints, TARGET)
        reader.recent_facts()
        reader.close()
        asked = len(node.asked)

        reader.recent_facts()

        assert not [thread for thread in threading.enumerate() if thread.name == "facts" and thread.is_alive()]
        assert (len(node.asked), asked > 0) == (asked, True)


def test_the_chain_id_is_asked_for_with_no_empty_batch() -> None:
    """JSON-RPC knows no batch of nothing: the chain and its block are all that is asked."""
    node = Node(say=kms_auth(), chain_id=5)
    with asking(node) as reader:
        assert reader.chain_id == 5

    assert node.asked == [["eth_chainId", "eth_getBlockByNumber"]]


def test_endpoints_that_are_closed_give_no_answer() -> None:
    """Whoever asks too late is told so, as by a chain that cannot be asked."""
    node = Node(say=kms_auth())
    with running(node):
        endpoints = Endpoints([node.url], head_seconds=0)
        endpoints.close()
        with pytest.raises(
            ChainUnavailableError, match=r"the block: want 1 of 1 endpoints to agree: .*not asked any more"
        ):
            endpoints.read(())
