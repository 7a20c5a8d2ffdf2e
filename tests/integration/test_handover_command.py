"""`dstack handover` between two addresses: what it says, its exit codes, and what it does when connections break."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dstack.attestation.collateral import serialise_collateral
from dstack.cli import handover as handover_module
from dstack.cli import handover_session
from dstack.cli.handover import command
from dstack.cli.handover_session import Node, Session
from dstack.cli.handover_words import Wanted, explain, what_would_help
from dstack.errors import (
    AppraisalError,
    ChainUnavailableError,
    DstackError,
    KeyReleaseDeniedError,
    PeerRefusedError,
    PeerUnavailableError,
)
from dstack.keys.sealing_stream import CHUNK
from dstack.measurement.event_log import RuntimeEvent
from dstack.policy import BootInfo, Decision
from dstack.transport.listener import Listener
from replicator import sending
from replicator.app import replicator_app
from replicator.documents import QuotedRequest, parse_request
from tests.handover_attacks import quoted_by
from tests.http_answers import answering
from tests.worlds import SECRET, Handover, Machine, MemoryChain, Site, make_handover


@dataclass(frozen=True)
class Said:
    """What the command said."""

    code: int
    out: str

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON on its standard output."""
        answer: dict[str, Any] = json.loads(self.out)
        return answer


def handover(*words: str) -> Said:
    """Run the command; errors come out as they do at a shell's prompt."""
    result = CliRunner().invoke(command, words, standalone_mode=False, catch_exceptions=False)
    return Said(result.return_value if isinstance(result.return_value, int) else 0, result.stdout)


@contextmanager
def served(world: Handover) -> Iterator[tuple[str, str]]:
    """The addresses of both nodes."""
    with Listener(replicator_app(world.old)).running() as old, Listener(replicator_app(world.new)).running() as new:
        yield f"http://127.0.0.1:{old.port}", f"http://127.0.0.1:{new.port}"


@pytest.fixture
def world(tmp_path: Path, site: Site) -> Handover:
    """Two nodes, nothing handed over."""
    return make_handover(tmp_path, site)


def test_it_hands_over_and_writes_the_receipt(world: Handover, tmp_path: Path) -> None:
    """Exit code 0, the receipt as the new node keeps it in a file, and people are told that the root was simulated."""
    with served(world) as (old, new):
        said = handover(old, new, "--receipt", str(tmp_path / "receipt.json"))

    assert (said.code, world.new_secure_file.read_bytes()) == (0, SECRET)
    assert said.out.startswith("SIMULATED: no Intel CPU")
    assert json.loads((tmp_path / "receipt.json").read_text()) == world.receipts("new")[0]


def test_a_receipt_that_cannot_be_written_is_bad_input(world: Handover, tmp_path: Path) -> None:
    """Its folder is not there: exit code 2 before anything is handed over."""
    with served(world) as (old, new), pytest.raises(DstackError, match="--receipt: want a file in a folder") as raised:
        handover(old, new, "--receipt", str(tmp_path / "nowhere" / "receipt.json"))

    assert raised.value.exit_code == 2
    assert (world.receipts("old"), world.new_secure_file.exists()) == ([], False)


def test_a_dry_run_hands_nothing_over(world: Handover) -> None:
    """It says that it would be accepted, at which block, and that the root is simulated."""
    with served(world) as (old, new):
        said = handover(old, new, "--dry-run")

    assert said.code == 0
    assert said.out == (
        "SIMULATED: no Intel CPU stands behind these quotes\nwould be accepted now, in the state of block 1234\n"
    )
    assert world.receipts("old") == []


def test_a_refusal_is_explained(world: Handover, tmp_path: Path) -> None:
    """Exit code 1, the rule, and where RTMR3 differs from the file that the node is meant to run."""
    measured = world.new_machine.booted.app_compose.compose_hash
    world.chain.allowed.remove(measured)
    wanted = world.old_machine.booted.app_compose
    (tmp_path / "app-compose.json").write_bytes(wanted.raw)

    with served(world) as (old, new):
        said = handover(old, new, "--app-compose", str(tmp_path / "app-compose.json"), "--json")
        text = handover(old, new)

    assert (said.code, said.facts["rule"], said.facts["kind"]) == (1, "COMPOSE_HASH", "KeyReleaseDeniedError")
    assert said.facts["because"] == [
        f"RTMR3 differs at compose-hash: your file gives {wanted.compose_hash.hex()}, "
        f"the machine measured {measured.hex()}"
    ]
    assert f"RTMR3 differs at compose-hash: the machine measured {measured.hex()}" in text.out


def test_a_refused_old_node_is_explained_by_its_own_evidence(world: Handover, tmp_path: Path) -> None:
    """What the new node is meant to run explains nothing here; what the old node measured does."""
    denied = world.old_machine.booted.app_compose.compose_hash
    world.chain.allowed.remove(denied)
    (tmp_path / "app-compose.json").write_bytes(world.new_machine.booted.app_compose.raw)

    with served(world) as (old, new):
        said = handover(old, new, "--app-compose", str(tmp_path / "app-compose.json"), "--json")

    assert (said.code, said.facts["rule"]) == (1, "COMPOSE_HASH")
    assert said.facts["error"].startswith("new node: old node: Compose hash not allowed")
    assert said.facts["because"] == [
        f"RTMR3 differs at compose-hash: the machine measured {denied.hex()}, which no version in force names"
    ]


def test_a_refusal_is_told_where_nobody_knows_when_it_changes(
    world: Handover, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment file that is not there hides no refusal."""
    world.chain.allowed.remove(world.new_machine.booted.app_compose.compose_hash)
    monkeypatch.setenv("DSTACK_DEPLOYMENT", str(tmp_path / "nowhere.json"))
    monkeypatch.setenv("DSTACK_RPC_URL", "http://127.0.0.1:1")

    with served(world) as (old, new):
        said = handover(old, new, "--json")

    assert (said.code, said.facts["rule"], said.facts["when"]) == (1, "COMPOSE_HASH", [])
    assert said.facts["because"][-1].startswith("when this may change is not known: ")
    assert "nowhere.json" in said.facts["because"][-1]


def test_a_silent_chain_is_could_not_ask(world: Handover) -> None:
    """The new node's 503 is exit code 3, not a refusal."""
    world.chain.reachable = False

    with served(world) as (old, new), pytest.raises(PeerUnavailableError, match="new node: no endpoint") as raised:
        handover(old, new)

    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    "url", ["old:4001", "ftp://old", "http://", "http://user:pw@old", "http://old:x", "http://o?x"]
)
def test_what_is_no_address_is_bad_input(url: str) -> None:
    """Exit code 2 before anything is sent anywhere."""
    with pytest.raises(DstackError, match="old node: want http://host:port") as raised:
        handover(url, "http://127.0.0.1:1")

    assert raised.value.exit_code == 2


def test_a_node_without_a_secure_file_says_so(tmp_path: Path, site: Site) -> None:
    """Who is asked the wrong way round has nothing to hand over, and the refusal says that."""
    world = make_handover(tmp_path, site)

    with served(world) as (old, new):
        said = handover(new, old)

    assert (said.code, said.out) == (
        1,
        "refused: old node: secure file: want one, got none: this node holds none yet\n",
    )


def test_nobody_there_is_could_not_ask() -> None:
    """An address where nobody listens, or something else does, is exit code 3."""
    with pytest.raises(PeerUnavailableError, match="new node: no answer"):
        handover("http://127.0.0.1:1", "http://127.0.0.1:1")


@contextmanager
def fragile(port: int, *, breaks_after: list[int]) -> Iterator[str]:
    """An address that passes connections on to *port*, and cuts each after so many bytes; the last ones hold."""
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, left: int) -> None:
        try:
            while left > 0 and (piece := source.recv(min(65536, left))):
                target.sendall(piece)
                left -= len(piece)
        except OSError:
            left = 0
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            node = socket.create_connection(("127.0.0.1", port))
            left = breaks_after[0] if breaks_after else 1 << 40
            threads = [
                threading.Thread(target=pump, args=(client, node, left)),
                threading.Thread(target=pump, args=(node, client, 1 << 40)),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            client.close()
            node.close()
            if breaks_after:
                breaks_after.pop(0)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.close()
        thread.join(5)


def test_a_broken_transfer_goes_on_where_it_ended(tmp_path: Path, site: Site) -> None:
    """Connections that break in the middle cost only the chunk that was on its way."""
    content = bytes(range(256)) * (4 * CHUNK // 256) + b"end"
    world = make_handover(tmp_path, site, content)
    with served(world) as (old, new):
        port = int(new.rpartition(":")[2])
        # The first connection is round 1, short; the second and the fourth (after /status) carry chunks.
        with fragile(port, breaks_after=[1 << 30, int(2.5 * CHUNK), 1 << 30, CHUNK + CHUNK // 2]) as address:
            said = handover(old, address, "--json")

    assert (said.code, said.facts["size"]) == (0, len(content))
    assert world.new_secure_file.read_bytes() == content
    assert (len(world.receipts("old")), len(world.receipts("new"))) == (1, 1)


def test_a_node_denied_while_it_receives_is_told_by_which_rule(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The old node ends the stream, which is no error of the server, and says why to whoever wants to go on."""
    monkeypatch.setattr(sending, "ASK_AGAIN_SECONDS", 0.0)
    world = make_handover(tmp_path, site, bytes(4 * CHUNK))
    denied = world.new_machine.booted.app_compose.compose_hash

    def deny(number: int) -> None:
        if number == 3:
            world.chain.allowed.discard(denied)

    with questions_about(world.new_machine, deny), served(world) as (old, new):
        said = handover(old, new, "--json")

    assert (said.code, said.facts["rule"]) == (1, "COMPOSE_HASH")
    assert not world.new_secure_file.exists()
    assert [each["rule"] for each in world.old.status()["refusals"]] == ["COMPOSE_HASH"] * 2
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_a_chain_that_is_silent_for_a_moment_costs_no_handover(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream ends where nobody can be asked, and goes on when the chain answers again."""
    monkeypatch.setattr(sending, "ASK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(handover_session, "_PAUSE_SECONDS", 0.1)
    content = bytes(range(256)) * (4 * CHUNK // 256)
    world = make_handover(tmp_path, site, content)

    def be_silent(number: int) -> None:
        if 3 <= number <= 5:
            raise ChainUnavailableError("no endpoint answers")

    with questions_about(world.new_machine, be_silent) as asked, served(world) as (old, new):
        said = handover(old, new, "--json")

    assert asked[0] > 5
    assert (said.code, said.facts["size"]) == (0, len(content))
    assert world.new_secure_file.read_bytes() == content
    assert (len(world.receipts("old")), len(world.receipts("new"))) == (1, 1)


def test_a_chain_that_is_silent_at_the_end_costs_no_handover(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks have come and stay; the answer's line alone is carried until the sender can be judged once more."""
    monkeypatch.setattr(handover_session, "_PAUSE_SECONDS", 0.1)
    content = bytes(range(256)) * (2 * CHUNK // 256)
    world = make_handover(tmp_path, site, content)
    seen: list[dict[str, Any]] = []

    def be_silent(number: int) -> None:
        if 2 <= number <= 3:
            seen.append(world.new.status()["pending"][0])
            raise ChainUnavailableError("no endpoint answers")

    with questions_about(world.old_machine, be_silent) as asked, served(world) as (old, new):
        said = handover(old, new, "--json")

    assert [(each["next_chunk"], each["chunks"]) for each in seen] == [(2, 2)] * 2
    assert asked == [4]
    assert (said.code, world.new_secure_file.read_bytes()) == (0, content)
    assert (len(world.receipts("old")), len(world.receipts("new"))) == (1, 1)


def test_a_chain_that_stays_silent_is_could_not_ask(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries the command gives up, which is exit code 3; nothing was stored."""
    monkeypatch.setattr(handover_session, "_PAUSE_SECONDS", 0.01)
    world = make_handover(tmp_path, site)

    def be_silent(number: int) -> None:
        if number >= 2:
            raise ChainUnavailableError("no endpoint answers")

    with (
        questions_about(world.old_machine, be_silent),
        served(world) as (old, new),
        pytest.raises(PeerUnavailableError, match="gave up after 5 tries without progress: new node: no end") as raised,
    ):
        handover(old, new)

    assert raised.value.exit_code == 3
    assert not world.new_secure_file.exists()


def test_a_new_node_that_goes_away_is_could_not_ask(world: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens any more when the stream is to be passed on: exit code 3 after some tries, nothing was stored."""
    monkeypatch.setattr(handover_session, "_PAUSE_SECONDS", 0.01)

    with Listener(replicator_app(world.old)).running() as old:
        with Listener(replicator_app(world.new)).running() as new:
            session = session_of(old, new)
            session.ask()
        with pytest.raises(PeerUnavailableError, match="gave up after 5 tries without progress: new node: ") as raised:
            session.transfer(lambda _done, _all: None)

    assert raised.value.exit_code == 3
    assert not world.new_secure_file.exists()


def test_a_new_node_that_comes_back_is_tried_again(world: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was out of reach when the stream was to be passed on, and has not forgotten its request."""
    back: list[Listener] = []

    def come_back(_seconds: float) -> None:
        if not back:
            back.append(cleanup.enter_context(Listener(replicator_app(world.new), port=port).running()))

    with ExitStack() as cleanup:
        old = cleanup.enter_context(Listener(replicator_app(world.old)).running())
        with Listener(replicator_app(world.new)).running() as new:
            port = new.port
            session = session_of(old, new)
            session.ask()
        monkeypatch.setattr(time, "sleep", come_back)
        session.transfer(lambda _done, _all: None)

    assert world.new_secure_file.read_bytes() == SECRET


def session_of(old: Listener, new: Listener) -> Session:
    """Between two listeners of this process."""
    return Session(
        *(Node.at(f"http://127.0.0.1:{each.port}", name) for each, name in ((old, "old node"), (new, "new node")))
    )


@contextmanager
def questions_about(machine: Machine, happens: Callable[[int], object]) -> Iterator[list[int]]:
    """Something happens before the chain is asked about *machine*, given how many times it was; so many."""
    authorize, count = MemoryChain.authorize_app, [0]

    def counted(chain: MemoryChain, boot: BootInfo) -> Decision:
        if boot.compose_hash == machine.booted.app_compose.compose_hash:
            count[0] += 1
            happens(count[0])
        return authorize(chain, boot)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MemoryChain, "authorize_app", counted)
        yield count


def test_what_broke_is_said_on_standard_error(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is tried again people read why nothing seems to happen."""
    monkeypatch.setattr(sending, "ASK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(handover_session, "_PAUSE_SECONDS", 0.1)
    world = make_handover(tmp_path, site, bytes(4 * CHUNK))

    def be_silent(number: int) -> None:
        if number == 3:
            raise ChainUnavailableError("no endpoint answers")

    with questions_about(world.new_machine, be_silent), served(world) as (old, new):
        result = CliRunner(mix_stderr=False).invoke(command, (old, new), standalone_mode=False, catch_exceptions=False)

    assert re.fullmatch(r"\.\.\. (old node: .+); going on at chunk [0-9]\n", result.stderr)


def test_who_waits_long_for_the_old_node_is_told(world: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes for a while, which is no fault: the old node reads its whole file before it answers."""
    monkeypatch.setattr(handover_module, "_PATIENCE_SECONDS", 0.1)

    with questions_about(world.new_machine, lambda _number: time.sleep(0.5)), served(world) as (old, new):
        slow = CliRunner(mix_stderr=False).invoke(command, (old, new), standalone_mode=False, catch_exceptions=False)
        silent = CliRunner(mix_stderr=False).invoke(
            command, (old, new, "--json"), standalone_mode=False, catch_exceptions=False
        )

    assert slow.stderr == "... waiting for the old node: it reads all first\n"
    assert silent.stderr == ""


def test_a_forgotten_request_is_explained(world: Handover) -> None:
    """A new node that was started anew knows nothing of its request; the command can be run again."""
    error = PeerRefusedError(f"new node: answer: no request {'66' * 32} waits here")

    assert words(world.request(), error) == ["the new node was started anew, or took too long: run the command again"]


def test_what_would_help_depends_on_the_refusal(world: Handover) -> None:
    """A version with the measured compose hash, the genesis of the app, or nothing that an app's proposal holds."""
    quoted = parse_request(world.request())
    app, measured = f"0x{quoted.request.app_id.hex()}", world.new_machine.booted.app_compose.compose_hash

    assert what_would_help(KeyReleaseDeniedError("COMPOSE_HASH", "x"), app, quoted.evidence) == Wanted(app, measured)
    recorded = PeerRefusedError("old node: genesis: want 66 recorded")
    assert what_would_help(recorded, app, quoted.evidence) == Wanted(app, None)
    assert what_would_help(KeyReleaseDeniedError("APP_FROZEN", "x"), app, quoted.evidence) is None
    assert what_would_help(PeerRefusedError("old node: step 3"), app, quoted.evidence) is None
    assert what_would_help(KeyReleaseDeniedError("COMPOSE_HASH", "x"), app, None) is None


def words(raw: bytes, error: DstackError) -> list[str]:
    """How a refusal of *raw* is explained."""
    return list(explain(error, parse_request(raw).evidence, None))


def test_a_log_that_does_not_replay_is_explained_by_its_event(world: Handover) -> None:
    """Where the log's own digest contradicts the payload, that event is named; else that something is hidden."""
    error = AppraisalError("RTMR3: want aa, the quote has bb")
    request = parse_request(world.request()).request
    hidden = quoted_by(world.new_machine, request)
    changed = quoted_by(
        world.new_machine,
        request,
        lambda evidence: replace(
            evidence,
            event_log=tuple(
                replace(event, payload=b"\x66" * 32) if event.name == "compose-hash" else event
                for event in evidence.event_log
            ),
        ),
    )
    short = quoted_by(
        world.new_machine, request, lambda evidence: replace(evidence, runtime_events=evidence.runtime_events[:3])
    )

    assert words(changed, error) == ["RTMR3 differs at compose-hash: the log's digest is not that of its payload"]
    assert words(short, error) == ["RTMR3 differs at instance-id: the log does not hold it"]
    assert words(hidden, error)[0].startswith("RTMR3 differs: after 'system-ready' more was extended")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (AppraisalError("RTMR1: want aa, the quote has bb"), "RTMR1 differs: the kernel is not"),
        (AppraisalError("RTMR2: want aa, the quote has bb"), "RTMR2 differs: the kernel's command line or the initrd"),
        (KeyReleaseDeniedError("OS_IMAGE", "x"), "KmsAuth does not list the OS image"),
        (KeyReleaseDeniedError("APP_FROZEN", "x"), "owner or guardian froze the app"),
        (AppraisalError("step 19: TCB status OutOfDate"), "docs/verification-steps.md"),
    ],
)
def test_every_kind_of_refusal_has_words(world: Handover, error: DstackError, sentence: str) -> None:
    """Registers, rules and steps are told in words."""
    assert sentence in words(world.request(), error)[0]


def test_names_in_a_log_do_not_steer_a_terminal(world: Handover) -> None:
    """The host of a new node chooses the names in its log; what is said of them is one line of plain characters."""
    world.new_machine.platform.extend(RuntimeEvent("x\x1b[2J\nwould be accepted now", b"\x66" * 32))
    request = parse_request(world.request()).request
    raw = quoted_by(
        world.new_machine,
        request,
        lambda evidence: replace(
            evidence,
            event_log=tuple(
                replace(event, digest=b"\x01" * 48) if event.name.startswith("x") else event
                for event in evidence.event_log
            ),
        ),
    )
    refusal = b'{"error": "RTMR3: want aa", "kind": "AppraisalError"}'

    with answering(lambda *_: (200, raw)) as new, answering(lambda *_: (409, refusal)) as old:
        said = handover(old.url, new.url)

    assert said.out == (
        "refused: old node: RTMR3: want aa\n"
        "  RTMR3 differs at x?[2J?would be accepted now: the log's digest is not that of its payload\n"
    )


@pytest.mark.parametrize("status", [404, 405])
def test_a_service_that_does_not_know_the_path_is_no_replicator(status: int) -> None:
    """Another service says in our form that there is no such path: that refuses no handover."""
    unknown = b'{"error": "path: want one that is served here, got \'/requestKey\'", "kind": "input"}'

    with (
        answering(lambda *_: (status, unknown)) as other,
        pytest.raises(PeerUnavailableError, match=f"^new node: want a replicator, got status {status}$"),
    ):
        handover(other.url, other.url)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b'{"accepted": true, "block": "\\u001b[2J", "simulated": true}', "block: want an integer"),
        (b'{"accepted": true}', "member 'block' is missing"),
        (b"[]", "want a JSON object"),
        (b"<html>", "not JSON"),
    ],
)
def test_a_dry_run_that_says_something_else_is_no_yes(world: Handover, answer: bytes, error: str) -> None:
    """What is no answer of a replicator is an error of one sentence."""
    with (
        answering(lambda *_: (200, answer)) as old,
        answering(lambda *_: (200, world.request())) as new,
        pytest.raises(DstackError, match=error),
    ):
        handover(old.url, new.url, "--dry-run")


def test_a_dry_run_that_says_no_without_a_reason_is_refused(world: Handover) -> None:
    """A node that answers 200 and "not accepted" is no node that accepts."""
    no = b'{"accepted": false, "block": 1, "simulated": true}'

    with answering(lambda *_: (200, no)) as old, answering(lambda *_: (200, world.request())) as new:
        said = handover(old.url, new.url, "--dry-run")

    assert (said.code, said.out) == (
        1, "refused: old node: dry run: it would not be accepted, and no reason is given\n",
    )  # fmt: skip


def test_evidence_that_cannot_be_read_is_not_explained(world: Handover) -> None:
    """A request with rubbish for evidence gets the plain refusal."""
    quoted = QuotedRequest(parse_request(world.request()).request, b"rubbish")

    assert list(explain(KeyReleaseDeniedError("COMPOSE_HASH", "x"), quoted.evidence, None)) == []


def test_receipts_verify_offline(world: Handover, tmp_path: Path) -> None:
    """A handover's receipt and the genesis both verify; another maker's root does not."""
    world.hand_over()
    (tmp_path / "collateral.json").write_text(serialise_collateral(world.site.pki.collateral()))
    (tmp_path / "root.der").write_bytes(world.site.pki.root_der)
    (tmp_path / "other.der").write_bytes(Site.make(b"another maker").pki.root_der)
    (sent,) = (tmp_path / "old" / "receipts").glob("*.sent.json")
    (genesis,) = (tmp_path / "old" / "receipts").glob("*.genesis.json")
    offline = ("--collateral", str(tmp_path / "collateral.json"), "--at", "2027-01-15T08:00:00Z")
    trusted = ("--root", str(tmp_path / "root.der"))

    answers = [handover("verify", str(path), *offline, *trusted, "--json").facts for path in (sent, genesis)]
    text = handover("verify", str(sent), *offline, *trusted).out

    assert [answer["kind"] for answer in answers] == ["handover", "genesis"]
    assert answers[0]["genesis"] == answers[1]["hash"]
    assert text.startswith("SIMULATED: no Intel CPU stands behind these quotes\nVERIFIED")
    kept = json.loads(sent.read_text())["receipt"]
    assert f"app_id: 0x{kept['request']['app_id']}\n" in text
    assert f"\nat: {datetime.fromtimestamp(kept['at'], UTC):%Y-%m-%d %H:%M:%S} UTC\n" in text
    with pytest.raises(DstackError, match="step 3"):
        handover("verify", str(sent), *offline, "--root", str(tmp_path / "other.der"))


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (("receipt", "at"), 1_800_000_001, "report data"),
        (("receipt", "sender", "compose_hash"), "66" * 32, "report data"),
        (("hash",), "66" * 32, "receipt: hash"),
        (("sealed_key",), "66" * 80, "sealed key beside it"),
        (("request", "nonce"), "66" * 32, "transcript"),
        (("evidence",), "00", "platform: want 1 bytes"),
        (("note",), "x", "unknown member"),
    ],
)
def test_a_changed_receipt_does_not_verify(
    world: Handover, tmp_path: Path, place: tuple[str, ...], value: object, match: str
) -> None:
    """Whatever is changed in a receipt's file is noticed."""
    world.hand_over()
    (tmp_path / "collateral.json").write_text(serialise_collateral(world.site.pki.collateral()))
    (tmp_path / "root.der").write_bytes(world.site.pki.root_der)
    kept = inner = world.receipts("new")[0]
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (tmp_path / "receipt.json").write_text(json.dumps(kept))

    with pytest.raises(DstackError, match=match):
        handover(
            "verify", str(tmp_path / "receipt.json"), "--collateral", str(tmp_path / "collateral.json"),
            "--root", str(tmp_path / "root.der"),
        )  # fmt: skip


def test_late_events_of_the_app_are_no_explanation(world: Handover) -> None:
    """Events after system-ready do not change what is called measured."""
    world.new_machine.platform.extend(RuntimeEvent("compose-hash", b"\x66" * 32))

    (sentence,) = words(world.request(), KeyReleaseDeniedError("COMPOSE_HASH", "x"))

    assert world.new_machine.booted.app_compose.compose_hash.hex() in sentence
