"""The check of a start: nothing is decided before it, a silent chain is waited for, another chain ends the program."""

from __future__ import annotations

import threading

import pytest

from dstack.chain.facts import Facts
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy import Granted, boot_info
from kms import start_check
from kms.start_check import CheckedAuthority
from tests.unit.kms.conftest import World, allow_kms

SECONDS = 30.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for seconds here."""
    monkeypatch.setattr(start_check, "PAUSE_SECONDS", 0.01)


def nobody_ends() -> None:
    """The end of a program that does not end."""
    pytest.fail("ended")


def test_chain_that_answers_is_checked_at_once(world: World) -> None:
    """From then on it decides, and nobody waits for anything."""
    allow_kms(world)
    checked = CheckedAuthority(world.chain, chain_id=31337)

    assert checked.check() is True
    with checked.awaited(nobody_ends):
        decision = checked.authorize_kms(boot_info(world.own.appraisal()))

    assert (checked.is_checked, type(decision)) == (True, Granted)
    assert isinstance(checked.recent_facts(), Facts)


def test_nothing_is_decided_before_the_check(world: World) -> None:
    """An authority that would say yes is not asked; who asks learns what the check is waiting for."""
    allow_kms(world)
    boot = boot_info(world.own.appraisal())
    checked = CheckedAuthority(world.chain)
    world.chain.reachable = False
    assert checked.check() is False
    world.chain.reachable = True

    for ask in (checked.authorize_kms, checked.authorize_app):
        with pytest.raises(ChainUnavailableError, match=r"^no answer since the start: chain: no endpoint answered$"):
            ask(boot)

    assert (world.chain.asked, checked.is_checked, checked.recent_facts()) == ([], False, None)


def test_silent_chain_is_checked_when_it_answers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Beside who asks, without anybody's doing; before and after it is one line each."""
    allow_kms(world)
    boot = boot_info(world.own.appraisal())
    checked = CheckedAuthority(world.chain, chain_id=31337)
    world.chain.reachable = False
    checked.check()

    with caplog.at_level("INFO", logger="kms"), checked.awaited(nobody_ends):
        with pytest.raises(ChainUnavailableError, match="no answer since the start"):
            checked.authorize_kms(boot)
        world.chain.reachable = True
        ends = threading.Event()
        while not checked.is_checked:
            ends.wait(0.01)
        decision = checked.authorize_kms(boot)

    assert isinstance(decision, Granted)
    assert caplog.messages == [
        "the chain cannot be asked: chain: no endpoint answered; nothing is released before it answers",
        "the chain answers as the settings want it",
    ]


def test_another_chain_ends_the_program_at_the_start(world: World) -> None:
    """As long as nobody is served yet, the error says so itself."""
    with pytest.raises(ConfigError, match="chain id: want 1, got 31337"):
        CheckedAuthority(world.chain, chain_id=1).check()


def test_another_chain_ends_the_program_when_it_shows(world: World) -> None:
    """It never decides anything, also while the program ends."""
    allow_kms(world)
    boot = boot_info(world.own.appraisal())
    checked = CheckedAuthority(world.chain, chain_id=1)
    world.chain.reachable = False
    checked.check()
    ended = threading.Event()

    def serve() -> None:
        with checked.awaited(ended.set):
            world.chain.reachable = True
            assert ended.wait(SECONDS)
            with pytest.raises(ChainUnavailableError, match="no answer since the start: chain id: want 1, got 31337"):
                checked.authorize_kms(boot)

    with pytest.raises(ConfigError, match="chain id: want 1, got 31337"):
        serve()

    assert (world.chain.asked, checked.is_checked, checked.recent_facts()) == ([], False, None)
