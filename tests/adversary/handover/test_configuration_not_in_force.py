"""Attack: a new node whose configuration is announced, cancelled, expired, at its sunset, denied or frozen."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.chain.action_data import Genesis as RecordedGenesis
from dstack.chain.endpoints import HEAD_SECONDS
from dstack.chain.operator import Action, Kind, cancel_call, deny_call, execute_call
from dstack.errors import HandoverRefusedError, KeyReleaseDeniedError
from dstack.keys.sealing_stream import CHUNK
from dstack.values import ComposeHash
from replicator import sending
from replicator.documents import serialise_request
from replicator.node import Replicator
from tests.chain_world import DELAY, WINDOW
from tests.law_world import LawWorld
from tests.worlds import SECRET, app_compose, place_genesis, receive

OLD, NEW = app_compose("notes:old"), app_compose("notes:new")


def started(law: LawWorld, folder: Path, content: bytes = SECRET) -> tuple[Replicator, Replicator]:
    """An old node that holds *content*, or what it held before, and a new one, both just started."""
    old = law.node(folder / "old", law.machine(folder / "old", OLD))
    if not old.around.secure_file.exists():
        place_genesis(old, content)
    return old, law.node(folder / "new", law.machine(folder / "new", NEW))


def deny(law: LawWorld, compose: ComposeHash) -> None:
    """Take a version back that is in force."""
    law.chain.call(deny_call(law.chain.deployment.operator, [law.chain.on_app(Kind.COMPOSE_HASH, compose)]))


def hand_over(law: LawWorld, folder: Path) -> bytes:
    """All three rounds between two nodes that were just started; what the new one holds then."""
    old, new = started(law, folder)
    receive(new, old.onboard(serialise_request(new.request_key()).encode()))
    return new.around.secure_file.path.read_bytes()


def refused(law: LawWorld, folder: Path, *, rule: str = "COMPOSE_HASH") -> None:
    """See that the new node gets nothing, by *rule*, and that the old node has sealed nothing."""
    with pytest.raises(KeyReleaseDeniedError, match="new node") as denied:
        hand_over(law, folder)
    assert denied.value.rule == rule
    assert not (folder / "new" / "secure-file").exists()
    assert not list((folder / "old" / "receipts").glob("*.sent.json"))


def test_waiting_configuration_gets_nothing_before_its_time(law: LawWorld, tmp_path: Path) -> None:
    """Announced is not allowed; 48 hours later it is, once somebody has executed it."""
    law.chain.grant(law.version(1, OLD))
    proposal = law.chain.propose(law.version(2, NEW))
    refused(law, tmp_path)

    law.warp(DELAY)
    refused(law, tmp_path)
    law.chain.call(execute_call(proposal), law.chain.stranger)

    assert hand_over(law, tmp_path) == SECRET


def test_cancelled_configuration_gets_nothing(law: LawWorld, tmp_path: Path) -> None:
    """What was cancelled is not in force, then or later."""
    law.chain.grant(law.version(1, OLD))
    proposal = law.chain.propose(law.version(2, NEW))
    law.chain.call(cancel_call(proposal), law.chain.guardian)
    law.warp(DELAY)

    refused(law, tmp_path)


def test_expired_configuration_gets_nothing(law: LawWorld, tmp_path: Path) -> None:
    """What nobody executed in time is not in force."""
    law.chain.grant(law.version(1, OLD))
    law.chain.propose(law.version(2, NEW))
    law.warp(DELAY + WINDOW + timedelta(seconds=1))

    refused(law, tmp_path)


def test_configuration_at_its_sunset_gets_nothing(law: LawWorld, tmp_path: Path) -> None:
    """A node of a version that has ended gets nothing; a second before its end it does."""
    law.chain.grant(law.version(1, NEW))
    sunset = law.now() + int(DELAY.total_seconds()) + 86400
    law.chain.grant(law.version(2, OLD, sunset=sunset))
    assert hand_over(law, tmp_path / "before") == SECRET
    law.chain.warp_to(sunset)

    refused(law, tmp_path)


def test_a_sender_at_its_sunset_is_not_believed(law: LawWorld, tmp_path: Path) -> None:
    """A new node takes nothing from a version that has ended."""
    law.chain.grant(law.version(1, OLD))
    sunset = law.now() + int(DELAY.total_seconds()) + 86400
    law.chain.grant(law.version(2, NEW, sunset=sunset))
    law.chain.warp_to(sunset)

    with pytest.raises(KeyReleaseDeniedError, match="old node: Compose hash not allowed"):
        hand_over(law, tmp_path)


def test_denied_configuration_gets_nothing(law: LawWorld, tmp_path: Path) -> None:
    """What was in force and was taken back gets nothing from that block on."""
    law.chain.grant(law.version(1, OLD), law.version(2, NEW))
    deny(law, law.machine(tmp_path / "look", NEW).booted.app_compose.compose_hash)

    refused(law, tmp_path)


def test_configuration_denied_while_it_receives_gets_no_more(
    law: LawWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denying is instant, also for a node that has had an answer and part of the content."""
    clock = Stopwatch()
    monkeypatch.setattr(sending.time, "monotonic", clock)
    law.chain.grant(law.version(1, OLD), law.version(2, NEW))
    old, new = started(law, tmp_path, bytes(4 * CHUNK))
    request = serialise_request(new.request_key()).encode()
    chunks = old.onboard(request).chunks(0)
    next(chunks)
    deny(law, new.identity.boot().compose_hash)

    clock.seconds += sending.ASK_AGAIN_SECONDS - 1
    next(chunks)
    clock.seconds += 1
    with pytest.raises(KeyReleaseDeniedError, match="new node: Compose hash not allowed") as under_way:
        next(chunks)
    with pytest.raises(KeyReleaseDeniedError, match="new node: Compose hash not allowed") as again:
        old.onboard(request)

    assert (under_way.value.rule, again.value.rule) == ("COMPOSE_HASH", "COMPOSE_HASH")


def test_a_sender_denied_while_it_sends_is_not_believed(
    law: LawWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new node stores nothing of a version that was denied before all of it had come."""
    clock = Stopwatch()
    monkeypatch.setattr(sending.time, "monotonic", clock)
    law.chain.grant(law.version(1, OLD), law.version(2, NEW))
    old, new = started(law, tmp_path)
    answer = old.onboard(serialise_request(new.request_key()).encode())
    delivery = new.receive(answer.line.encode())
    delivery.add(next(answer.chunks(0)))
    deny(law, old.identity.boot().compose_hash)

    clock.seconds += HEAD_SECONDS + 1
    with pytest.raises(KeyReleaseDeniedError, match="old node: Compose hash not allowed") as denied:
        new.finish(delivery)

    assert denied.value.rule == "COMPOSE_HASH"
    assert not new.around.secure_file.exists()
    assert new.around.receipts.count() == 0


class Stopwatch:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = time.monotonic()

    def __call__(self) -> float:
        """As `time.monotonic`."""
        return self.seconds


def test_frozen_app_gets_nothing(law: LawWorld, tmp_path: Path) -> None:
    """While an app is frozen nobody hands over anything, whatever is allowed."""
    law.chain.grant(law.version(1, OLD), law.version(2, NEW))
    freeze = Action.of(Kind.APP, law.chain.deployment.kms_auth, bytes(law.chain.app_id).rjust(32, b"\0"))
    law.chain.call(deny_call(law.chain.deployment.operator, [freeze]), law.chain.guardian)

    refused(law, tmp_path, rule="APP_FROZEN")
    law.warp(timedelta(days=7))

    assert hand_over(law, tmp_path) == SECRET


def test_an_unrecorded_genesis_is_handed_to_nobody(law: LawWorld, tmp_path: Path) -> None:
    """By default the owners must have recorded the genesis: then both nodes agree with the chain on it."""
    law.chain.grant(law.version(1, OLD), law.version(2, NEW))
    strict = replace(law.settings, requires_genesis=True)
    genesis = place_genesis(law.node(tmp_path / "old", law.machine(tmp_path / "old", OLD)))

    def attempt() -> bytes:
        old = law.node(tmp_path / "old", law.machine(tmp_path / "old", OLD), settings=strict)
        new = law.node(tmp_path / "new", law.machine(tmp_path / "new", NEW), settings=strict)
        receive(new, old.onboard(serialise_request(new.request_key()).encode()))
        return new.around.secure_file.path.read_bytes()

    with pytest.raises(HandoverRefusedError, match=r"genesis: want .* recorded on the chain"):
        attempt()
    recorded = RecordedGenesis(genesis.fingerprint, genesis.hash())
    law.chain.grant(Action(Kind.GENESIS, law.chain.app_auth.address, recorded.encode()))

    assert attempt() == SECRET


def test_unlisted_registers_get_nothing_where_they_are_asked(law: LawWorld, tmp_path: Path) -> None:
    """A node that demands listed registers hands nothing to a version that lists none."""
    law.chain.grant(law.version(1, OLD), law.version(2, NEW))
    strict = replace(law.settings, require_listed_registers=True)
    old = law.node(tmp_path / "old", law.machine(tmp_path / "old", OLD), settings=strict)
    new = law.node(tmp_path / "new", law.machine(tmp_path / "new", NEW))
    place_genesis(old)

    with pytest.raises(KeyReleaseDeniedError, match="Registers not allowed"):
        old.onboard(serialise_request(new.request_key()).encode())
