"""Several endpoints: what enough of them say is an answer, and what one of them does hurts nobody."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import pytest

from dstack.chain import endpoints as endpoints_module
from dstack.chain.endpoints import Endpoints
from dstack.chain.gathering import unprotected
from dstack.chain.reading import Call, CodeAt, Newer, Reading, Returned, Reverted
from dstack.errors import ChainElsewhereError, ChainUnavailableError, ConfigError
from tests.rpc_nodes import GENESIS, TARGET, Node, block_at, running

ASK = (Call(TARGET, b"may I?"),)
YES, NO = (Returned(b"yes"),), (Returned(b"no"),)
SECONDS = 2.0


def says_no(data: bytes, number: int) -> bytes:
    """A node that denies."""
    return b"no"


@contextmanager
def asking(*nodes: Node, **settings: object) -> Iterator[Endpoints]:
    """Endpoints over running nodes."""
    with running(*nodes):
        reader = Endpoints([node.url for node in nodes], seconds=SECONDS, **settings)
        try:
            yield reader
        finally:
            reader.close()


def test_answers_of_all_questions_rest_on_one_block() -> None:
    """Answers come in the order of the questions, whatever the order on the wire, with chain and block."""
    say = lambda data, _: None if data == b"revert" else data + b"!"  # noqa: E731
    nodes = [Node(chain_id=5, say=say) for _ in range(3)]
    with asking(*nodes) as reader:
        reading = reader.read((Call(TARGET, b"a"), CodeAt(TARGET), Call(TARGET, b"revert")))

        assert reading == Reading(5, block_at(100), (Returned(b"a!"), Returned(b"code!"), Reverted()))
        assert set(reader.complaints.values()) == {""}


def lying(node: Node) -> None:
    """It denies."""
    node.say = says_no


def behind(node: Node) -> None:
    """It has not come far."""
    node.head = 7


def forked(node: Node) -> None:
    """It is on a fork of its own."""
    node.fork_from = 90


def elsewhere(node: Node) -> None:
    """It is on another chain."""
    node.chain_id = 2


def hanging(node: Node) -> None:
    """It takes the question and says nothing."""
    node.hang.set()


def dead(node: Node) -> None:
    """Nobody listens."""
    node.stop()


def malformed(node: Node) -> None:
    """It answers with a page."""
    node.raw = b"<html>"


def short(node: Node) -> None:
    """It answers nothing of what was asked."""
    node.raw = b"[]"


def huge(node: Node) -> None:
    """It answers more than anybody wants."""
    node.raw = b"[" + b" " * (1 << 20) + b"]"


def refusing(node: Node) -> None:
    """It wants to be asked less."""
    node.status = 429


def timeless(node: Node) -> None:
    """Its blocks are of no year."""
    node.at = lambda _: 1 << 63


def far_ahead(node: Node) -> None:
    """It claims a block that cannot be."""
    node.head = 10**9


MANNERS: list[tuple[Callable[[Node], None], str]] = [
    (lying, "answers otherwise than others at block 100"),
    (behind, "stands at block 7, the others at 100"),
    (forked, "has another block 100 than the others"),
    (elsewhere, "is on chain 2, want 1"),
    (hanging, "no answer within 2 s"),
    (dead, "cannot be reached: ConnectError"),
    (malformed, "want JSON, got something else"),
    (timeless, "block time: want at most 253402300799, got 9223372036854775808"),
    (short, "want 2 JSON-RPC answers, got 0"),
    (huge, "want an answer of at most 1048576 bytes, got more"),
    (refusing, "answers with HTTP status 429"),
    (far_ahead, ""),
]


@pytest.mark.parametrize(("misbehave", "complaint"), MANNERS, ids=[manner.__name__ for manner, _ in MANNERS])
def test_one_of_three_changes_nothing_and_is_named(misbehave: Callable[[Node], None], complaint: str) -> None:
    """The two others answer, and what is wrong with the third is said."""
    nodes = [Node(), Node(), Node()]
    with asking(*nodes, chain_id=1) as reader:
        misbehave(nodes[1])

        assert reader.read(ASK) == Reading(1, block_at(100), YES)
        assert [reader.complaints[node.url] for node in nodes] == ["", complaint, ""]


@pytest.mark.parametrize("misbehave", [manner for manner, _ in MANNERS], ids=[manner.__name__ for manner, _ in MANNERS])
def test_one_of_two_is_no_answer(misbehave: Callable[[Node], None]) -> None:
    """Where too few agree there is neither yes nor no; an endpoint that only stands elsewhere still agrees."""
    nodes = [Node(), Node()]
    with asking(*nodes, chain_id=1) as reader:
        misbehave(nodes[1])

        if misbehave in (behind, far_ahead):
            number = 7 if misbehave is behind else 100
            assert reader.read(ASK).block == block_at(number)
            return
        with pytest.raises(ChainUnavailableError, match="want 2 of 2 endpoints to agree: http://127"):
            reader.read(ASK)


def test_two_lies_that_differ_leave_no_answer() -> None:
    """Three answers in the state of one block: nobody is believed."""
    nodes = [Node(), Node(say=says_no), Node(say=lambda _data, _number: b"perhaps")]
    with asking(*nodes) as reader, pytest.raises(ChainUnavailableError, match="the answer: want 2 of 3 endpoints to"):
        reader.read(ASK)


def test_everybody_elsewhere_is_no_answer() -> None:
    """Endpoints that agree on another chain than the one wanted are not believed, and the error is of its own kind."""
    with asking(Node(chain_id=5), chain_id=1) as reader:
        for _ in range(2):
            with pytest.raises(ChainElsewhereError, match="on chain 5, want 1"):
                reader.read(ASK)


def test_some_elsewhere_are_no_other_chain() -> None:
    """Where fewer than must agree are on another chain, the others may only be silent."""
    gone = [Node(), Node()]
    with asking(Node(chain_id=5), *gone, chain_id=1) as reader:
        for node in gone:
            dead(node)
        with pytest.raises(ChainUnavailableError, match="on chain 5, want 1") as failed:
            reader.read(ASK)

    assert type(failed.value) is ChainUnavailableError


def test_a_newer_block_is_asked_for_denials() -> None:
    """An endpoint that has gone further answers twice: as the others do, and in the state of its own block."""
    ahead = Node(head=103, say=lambda _, number: b"no" if number > 101 else b"yes")
    with asking(Node(), Node(), ahead) as reader:
        assert reader.read(ASK) == Reading(1, block_at(100), YES, (Newer(ahead.url, block_at(103), NO),))


class Forgetful(Node):
    """Does not find the state of blocks from 101 on when it is first asked."""

    has_found = False

    def _outcome(self, request: dict[str, Any]) -> dict[str, Any]:
        outcome = super()._outcome(request)
        if outcome == {"result": "0x" + b"no".hex()} and not self.has_found:
            self.has_found = True
            return {"error": {"code": -32000, "message": "missing trie node"}}
        return outcome


def test_a_denial_that_could_not_be_told_at_once_is_asked_for_again() -> None:
    """An endpoint that has gone further and failed there once hides no denial until the others come to its block."""
    ahead = Forgetful(head=103, say=lambda _, number: b"no" if number > 101 else b"yes")
    with asking(Node(), Node(), ahead, head_seconds=0) as reader:
        assert reader.read(ASK) == Reading(1, block_at(100), YES)

        assert reader.read(ASK).newer == (Newer(ahead.url, block_at(103), NO),)


def test_an_inventor_of_blocks_is_not_believed() -> None:
    """A newer block that never comes is noticed when the others get there; from then on only agreement counts."""
    honest = [Node(), Node()]
    inventor = Node(head=102, fork_from=101, say=lambda _, number: b"no" if number > 100 else b"yes")
    with asking(*honest, inventor, head_seconds=0) as reader:
        assert [newer.block.number for newer in reader.read(ASK).newer] == [102]
        for node in honest:
            node.head = 102

        assert reader.read(ASK) == Reading(1, block_at(102), YES)
        inventor.fork_from, inventor.head = 104, 105
        assert reader.read(ASK).newer == ()


def test_a_block_that_would_be_long_overdue_never_came() -> None:
    """Whoever names a number that is far off is caught as soon as the chain gets later than the named block's time."""
    honest = [Node(), Node()]
    inventor = Node(head=100_000, at=lambda number: GENESIS + (1212 if number > 200 else 12 * number))
    with asking(*honest, inventor, head_seconds=0) as reader:
        assert [newer.block.number for newer in reader.read(ASK).newer] == [100_000]
        for node in honest:
            node.head = 102

        assert reader.read(ASK) == Reading(1, block_at(102), YES)


def test_an_old_agreement_still_asks_for_denials() -> None:
    """One endpoint that stays behind, true as its block may be, hides no denial of the one that goes on."""
    slow, fast = Node(), Node(head=119, say=lambda _, number: b"no" if number > 101 else b"yes")
    with asking(slow, fast) as reader:
        assert reader.read(ASK) == Reading(1, block_at(100), YES, (Newer(fast.url, block_at(119), NO),))


def test_a_newer_block_that_came_is_believed_again() -> None:
    """An honest endpoint that is faster than the others stays of use."""
    nodes = [Node(), Node(), Node(head=102)]
    with asking(*nodes, head_seconds=0) as reader:
        reader.read(ASK)
        for node in nodes:
            node.head += 2

        assert [newer.block.number for newer in reader.read(ASK).newer] == [104]
        assert set(reader.complaints.values()) == {""}


def test_an_endpoint_that_hangs_is_waited_for_once() -> None:
    """The second question does not wait for it, and it is asked no more until a second has passed."""
    nodes = [Node(), Node(), Node()]
    nodes[2].hang.set()
    with asking(*nodes) as reader:
        reader.read(ASK)
        waits: list[bool] = []
        thread = threading.Thread(target=lambda: waits.append(bool(reader.read((Call(TARGET, b"again"),)))))
        thread.start()
        thread.join(SECONDS / 2)

        assert waits == [True]


def test_an_endpoint_that_comes_back_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed and started again at the same port, it counts as before, without anything being made anew."""
    monkeypatch.setattr(endpoints_module, "FAILURE_SECONDS", 0.0)
    nodes = [Node(), Node()]
    with asking(*nodes) as reader:
        reader.read(ASK)
        nodes[0].stop()
        with pytest.raises(ChainUnavailableError, match="cannot be reached"):
            reader.read((Call(TARGET, b"while it is away"),))
        nodes[0].start()

        assert reader.read((Call(TARGET, b"when it is back"),)).answers == YES


def test_who_asks_the_same_costs_one_request() -> None:
    """Twenty threads with one question make one round for the block and one for the answer at each endpoint."""
    nodes = [Node(), Node(), Node()]
    with asking(*nodes) as reader:
        readings: list[Reading] = []
        threads = [threading.Thread(target=lambda: readings.append(reader.read(ASK))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert readings == [Reading(1, block_at(100), YES)] * 20
        assert [node.asked for node in nodes] == [[["eth_chainId", "eth_getBlockByNumber"], ["eth_call"]]] * 3


def test_answers_are_kept_for_their_block_alone() -> None:
    """With the next block everything is asked anew; as long as the block stays, nothing is."""
    node = Node(say=lambda _, number: b"no" if number > 100 else b"yes")
    with asking(node, head_seconds=0) as reader:
        same = [reader.read(ASK).answers for _ in range(3)]
        calls = node.asked.count(["eth_call"])
        node.head = 101

        assert (same, calls, reader.read(ASK).answers) == ([YES] * 3, 1, NO)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (GENESIS + 1200 + 3601, "block 100 is 1:00:01 old, want at most 1:00:00"),
        (GENESIS + 1200 - 61, "block 100 is 0:01:01 in the future: this machine's clock is behind"),
    ],
)
def test_a_block_too_old_or_too_new_answers_nothing(now: int, words: str) -> None:
    """A head that stands still, or a clock that is off, is neither yes nor no."""
    reader_of = asking(Node(), max_age=timedelta(hours=1), clock=lambda: now)
    with reader_of as reader, pytest.raises(ChainUnavailableError, match=words):
        reader.read(ASK)


def test_a_kept_answer_ends_with_the_age_of_its_block() -> None:
    """What was answered a moment ago is not answered again once its block is too old."""
    now = [float(GENESIS + 1200 + 3600)]
    with asking(Node(), max_age=timedelta(hours=1), clock=lambda: now[0]) as reader:
        assert reader.read(ASK).answers == YES
        now[0] += 1

        with pytest.raises(ChainUnavailableError, match="1:00:01 old"):
            reader.read(ASK)


def test_a_fault_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """One line for each change, with the endpoint's host and no more of its URL."""
    nodes = [Node(), Node(), Node()]
    with ExitStack() as stack, caplog.at_level(logging.INFO, "dstack.chain"):
        stack.enter_context(running(*nodes))
        reader = Endpoints([f"{node.url}/v3/secret" for node in nodes], seconds=SECONDS, head_seconds=0)
        stack.callback(reader.close)
        nodes[0].head = 7
        for _ in range(3):
            reader.read(ASK)
        nodes[0].head = 100
        reader.read(ASK)

    assert [record.message for record in caplog.records] == [
        f"chain endpoint {nodes[0].url}: behind: stands at block 7, the others at 100",
        f"chain endpoint {nodes[0].url}: of use again (was: behind)",
    ]


@pytest.mark.parametrize(
    ("urls", "settings", "words"),
    [
        ([], {}, "want 1 to 9, got 0"),
        ([f"http://a:{port}" for port in range(1, 11)], {}, "want 1 to 9, got 10"),
        (["ftp://a"], {}, "want an http or https URL with a host"),
        (["http://a"], {"block_tag": "pending"}, "block tag: want one of finalized, safe, latest"),
        (["http://a", "http://b", "http://c"], {"agreement": 1}, "want 2 to 3 of 3, got 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(urls: list[str], settings: dict[str, object], words: str) -> None:
    """What would weaken the agreement, or lead nowhere, is refused at once."""
    with pytest.raises(ConfigError, match=words):
        Endpoints(urls, **settings)


@pytest.mark.parametrize(
    "urls",
    [
        ("https://a.example/key1", "https://a.example/key2"),
        ("https://a.example", "https://A.EXAMPLE./"),
        ("https://a.example", "http://me:secret@a.example:8545"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("http://10.0.0.1", "http://167772161"),
        ("http://10.0.0.1", "http://[::ffff:10.0.0.1]"),
        ("http://[2001:db8::1]", "http://[2001:DB8:0::1]:1"),
        ("http://localhost:8545", "http://127.0.0.1:8545"),
        ("http://127.1:8545", "http://[::1]:8545/x"),
        ("http://localhost", "http://0.0.0.0:80"),
    ],
)
def test_one_host_has_one_voice(urls: tuple[str, str]) -> None:
    """However it is spelled, a host that is named twice could agree with itself; the error shows no credential."""
    with pytest.raises(ConfigError, match="want each at a host of its own, got http") as refused:
        Endpoints(["https://other.example", *urls])

    assert not re.search("secret|key", str(refused.value))


def test_programs_of_this_machine_are_told_apart_by_their_ports() -> None:
    """Light clients beside this program have a voice each, and names like theirs elsewhere are other hosts."""
    urls = ["http://localhost:1", "http://127.0.0.1:2", "http://[::1]:3", "http://localhost.example:1"]

    reader = Endpoints(urls)
    assert list(reader.complaints) == urls
    reader.close()


def test_plain_http_to_elsewhere_is_told() -> None:
    """Whoever is in between can change what comes by http; a name that begins like this machine is not this machine."""
    urls = [
        "http://localhost.evil.example/key",
        "https://a",
        "http://127.0.0.1:1",
        "http://[::1]",
        "http://u:p@10.0.0.1:2",
    ]

    assert unprotected(urls) == ("http://localhost.evil.example", "http://10.0.0.1:2")
