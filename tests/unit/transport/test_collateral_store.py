"""The collateral store: what it keeps, serves, fetches and refuses, over real services and a real folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.attestation.collateral import serialise_collateral
from dstack.attestation.quote import parse_quote
from dstack.errors import (
    CollateralFatalError,
    CollateralTransientError,
    CollateralUnavailableError,
    QuoteUntrustedError,
)
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pccs import Behaviour
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.simulator.statements import EVALUATION_NUMBER, VALIDITY
from dstack.transport import collateral_archive
from dstack.transport.collateral_archive import CollateralArchive
from dstack.transport.collateral_store import REFRESH_AFTER, CollateralStore, opened_collateral
from dstack.values import ReportData
from tests.pccs_world import BORN, Clock, PccsWorld, pccs_world, wait_until

OLDER, NEWER = EVALUATION_NUMBER - 1, EVALUATION_NUMBER + 1


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PccsWorld]:
    """A maker, and an empty folder."""
    with pccs_world(tmp_path / "store") as made:
        yield made


def kept(world: PccsWorld) -> list[str]:
    """The names of the versions kept about the platform."""
    return sorted(path.name for path in (world.folder / str(world.model)).glob("*"))


def test_the_first_quote_fetches_and_keeps(world: PccsWorld) -> None:
    """What comes is what the maker says now, and lies in the folder by model and date."""
    store = world.store(Behaviour())

    collateral = store.collateral_for(world.quote)

    assert collateral.tcb_info == world.pki.collateral(BORN).tcb_info
    (name,) = kept(world)
    assert name.startswith("20270115T080000Z-")
    assert (world.folder / str(world.model) / name).read_text() == serialise_collateral(collateral)


def test_what_is_in_force_is_served_without_asking(world: PccsWorld) -> None:
    """A second quote of the day asks nobody."""
    behaviour = Behaviour()
    store = world.store(behaviour)
    first = store.collateral_for(world.quote)
    asked = len(behaviour.requests)

    assert store.collateral_for(world.quote) is first
    assert len(behaviour.requests) == asked == 4


def test_what_was_kept_is_served_after_a_restart_with_every_service_down(world: PccsWorld) -> None:
    """Until the last second of the issuer's own dates, and not one longer."""
    first = world.store(Behaviour()).collateral_for(world.quote)
    restarted = world.store(Behaviour(status=503))

    world.clock.now = BORN + VALIDITY - timedelta(seconds=1)
    assert restarted.collateral_for(world.quote) == first

    world.clock.now = BORN + VALIDITY
    with pytest.raises(CollateralTransientError, match="status 503"):
        restarted.collateral_for(world.quote)


def test_a_refresh_happens_behind_the_callers_back(world: PccsWorld) -> None:
    """A day later the old statements are served at once, and soon the new ones are."""
    behaviour = Behaviour()
    store = world.store(behaviour)
    first = store.collateral_for(world.quote)
    behaviour.evaluation_number = NEWER
    world.clock.now += REFRESH_AFTER

    assert store.collateral_for(world.quote) is first
    wait_until(lambda: store.verified_for(world.model).evaluation_number == NEWER)
    assert len(kept(world)) == 2


def is_fetching(world: PccsWorld) -> bool:
    """Whether a thread asks about the platform."""
    return any(thread.name == f"collateral {world.model}" for thread in threading.enumerate())


def test_a_failed_refresh_costs_nobody_anything(world: PccsWorld) -> None:
    """Statements in force are served while the services fail, and the failing service is left alone for a while."""
    behaviour = Behaviour()
    store = world.store(behaviour)
    first = store.collateral_for(world.quote)
    behaviour.status, asked = 500, len(behaviour.requests)
    world.clock.now += REFRESH_AFTER

    assert store.collateral_for(world.quote) is first
    wait_until(lambda: len(behaviour.requests) == asked + 1 and not is_fetching(world))
    for _ in range(20):
        assert store.collateral_for(world.quote) is first
    assert len(behaviour.requests) == asked + 1


def test_many_callers_make_one_flight(world: PccsWorld) -> None:
    """Sixteen quotes at once of a platform nobody has asked about: each page is asked for once."""
    behaviour = Behaviour(delay=0.1)
    store = world.store(behaviour)
    quote = world.quote

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: store.collateral_for(quote), range(16)))

    assert len(behaviour.requests) == 4
    assert all(answer is answers[0] for answer in answers)


def test_endpoints_are_asked_in_their_order(world: PccsWorld) -> None:
    """The second is asked when the first is down, or dishonest, and only then."""
    down, liar, honest, unasked = Behaviour(status=503), Behaviour(wrong_signer=True), Behaviour(), Behaviour()

    world.store(down, liar, honest, unasked).collateral_for(world.quote)

    assert [len(each.requests) for each in (down, liar, honest, unasked)] == [1, 4, 4, 0]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (Behaviour(wrong_signer=True), "step 5: TCB info: its signature does not verify"),
        (Behaviour(impostor=SimulatedPki.generate(BORN, seed=b"impostor")), "step 4: PCK CRL issuer chain"),
        (Behaviour(status=404), "status 404"),
    ],
    ids=["wrong signer", "wrong root", "unknown"],
)
def test_what_does_not_hold_is_fatal_and_not_kept(world: PccsWorld, behaviour: Behaviour, message: str) -> None:
    """Nothing unverified is served or written; asking again at once asks nobody."""
    store = world.store(behaviour)
    for _ in range(3):
        with pytest.raises(CollateralFatalError, match=message):
            store.collateral_for(world.quote)

    assert kept(world) == []
    assert len(behaviour.requests) <= 4


def test_one_service_that_might_know_makes_a_failure_transient(world: PccsWorld) -> None:
    """Not every one could be asked, so that there is no answer yet."""
    with pytest.raises(CollateralTransientError, match=r"status 404.*; .*status 503"):
        world.store(Behaviour(status=404), Behaviour(status=503)).collateral_for(world.quote)


def test_a_failure_is_forgotten_after_a_while(world: PccsWorld) -> None:
    """The service recovers, and so does the store, though not at the next millisecond."""
    behaviour = Behaviour(status=503)
    store = world.store(behaviour)
    with pytest.raises(CollateralTransientError, match="503"):
        store.collateral_for(world.quote)
    behaviour.status = 200
    with pytest.raises(CollateralTransientError, match="503"):
        store.collateral_for(world.quote)

    world.clock.advance(seconds=10)
    assert store.collateral_for(world.quote).tcb_info == world.pki.collateral(world.clock.now).tcb_info


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"evaluation_number": OLDER},
            f"TCB info: want number {EVALUATION_NUMBER} or more, as seen before, got {OLDER}",
        ),
        ({"crl_number": 1}, "root CRL: want number 2 or more, as seen before, got 1"),
    ],
)
def test_numbers_never_go_back(world: PccsWorld, change: dict[str, int], message: str) -> None:
    """Genuine statements with a lower number than one seen are refused, also after a restart and an expiry."""
    world.store(Behaviour(crl_number=2)).collateral_for(world.quote)
    world.clock.now += VALIDITY
    restarted = world.store(Behaviour(**{"crl_number": 2, **change}))

    with pytest.raises(CollateralFatalError, match=message):
        restarted.collateral_for(world.quote)
    assert len(kept(world)) == 1


def test_an_older_statement_of_the_same_number_replaces_nothing(world: PccsWorld) -> None:
    """A cache that lags behind is asked, and what is in force already stays."""
    first = world.store(Behaviour()).collateral_for(world.quote)
    lagging = world.client(world.serve(Behaviour(), clock=Clock(BORN - timedelta(hours=2))))
    store = CollateralStore(world.folder, roots=world.roots, clock=world.clock, endpoints=[lagging])

    assert lagging.fetch(world.model).tcb_info != first.tcb_info
    assert store.refresh(world.model).collateral == first
    assert len(kept(world)) == 1


def test_a_past_moment_is_judged_by_what_was_in_force_then(world: PccsWorld) -> None:
    """Of all the versions kept, the one that was in force: not the newest, which did not exist yet."""
    behaviour = Behaviour()
    store = world.store(behaviour)
    first = store.refresh(world.model).collateral
    world.clock.advance(days=10)
    assert store.refresh(world.model).collateral != first
    world.clock.advance(days=-5)

    assert world.store().collateral_for(world.quote) == first


def test_without_endpoints_the_folder_is_all_there_is(world: PccsWorld) -> None:
    """An offline folder, filled by hand, by file for the model or for all."""
    world.folder.mkdir()
    store = world.store()
    with pytest.raises(CollateralUnavailableError, match="want it in the folder, got none in force"):
        store.collateral_for(world.quote)

    ours = world.pki.collateral(BORN)
    (world.folder / "collateral.json").write_text(serialise_collateral(ours))
    assert store.collateral_for(world.quote) == ours


def test_damaged_files_hide_nothing(world: PccsWorld) -> None:
    """Half a file, a foreign file and a file of another maker lie beside a good one; the good one is served."""
    good = world.store(Behaviour()).collateral_for(world.quote)
    folder = world.folder / str(world.model)
    (folder / "20270116T000000Z-0000000000000000.json").write_text('{"half')
    (folder / "99999999T999999Z-0000000000000000.json").write_text(serialise_collateral(good))
    foreign = SimulatedPki.generate(BORN, seed=b"foreign").collateral()
    (folder / "20270117T000000Z-0000000000000000.json").write_text(serialise_collateral(foreign))
    (folder / "notes.txt").write_text("mine")

    assert world.store().collateral_for(world.quote) == good


def test_a_stranger_makes_nobody_ask(world: PccsWorld) -> None:
    """A quote under certificates of the sender's own making is refused before an endpoint hears of it."""
    behaviour = Behaviour()
    stranger = SimulatedPki.generate(BORN, seed=b"stranger")
    raw = make_quote(stranger, registers=TdRegisters(*[ZERO_REGISTER] * 5), report_data=ReportData(bytes(64)))

    with pytest.raises(
        QuoteUntrustedError, match="step 3: PCK chain: want three certificates that end in a configured"
    ):
        world.store(behaviour).collateral_for(parse_quote(raw))
    assert behaviour.requests == []


def test_only_the_newest_versions_are_kept(world: PccsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is bounded: the oldest version goes when one too many comes; the same content comes only once."""
    monkeypatch.setattr(collateral_archive, "MOST_VERSIONS", 3)
    archive = CollateralArchive(world.folder)
    for day in range(5):
        at = BORN + timedelta(days=day)
        for _ in range(2):
            archive.keep(world.model, world.pki.collateral(at), at=at)

    assert [name[:8] for name in kept(world)] == ["20270117", "20270118", "20270119"]
    assert archive.models() == (world.model,)


def test_a_caller_does_not_wait_for_ever(world: PccsWorld) -> None:
    """The flight goes on behind its back."""
    store = world.store(Behaviour(delay=0.2), patience=0.1)

    with pytest.raises(CollateralTransientError, match="no endpoint answered in time"):
        store.collateral_for(world.quote)
    wait_until(lambda: len(kept(world)) == 1)


def test_callers_who_wait_are_bounded(world: PccsWorld) -> None:
    """Whoever shows a platform that nobody knows waits for a slow service; the seventeenth is turned away."""
    store = world.store(Behaviour(delay=1.0))
    with ThreadPoolExecutor(17) as pool:
        asked = [pool.submit(store.collateral_for, world.quote) for _ in range(17)]
    failures = [str(one.exception()) for one in asked if one.exception()]

    assert failures == ["collateral: too many wait for it, try again later"]


def test_a_flight_that_found_no_thread_is_over(world: PccsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that gives no thread for a moment does not leave callers waiting for ever."""

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = world.store(Behaviour(), patience=5)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(CollateralTransientError, match="no thread to ask with"):
            store.collateral_for(world.quote)

    assert store.collateral_for(world.quote).tcb_info == world.pki.collateral(BORN).tcb_info


def test_versions_are_json_that_anyone_can_read(world: PccsWorld) -> None:
    """Mode 0644, nine members."""
    world.store(Behaviour()).collateral_for(world.quote)
    (path,) = (world.folder / str(world.model)).iterdir()

    assert path.stat().st_mode & 0o777 == 0o644
    assert len(json.loads(path.read_text())) == 9


def test_a_closed_store_fetches_nothing_and_still_serves(world: PccsWorld) -> None:
    """What is in force stays; what would have to be fetched is an error at once."""
    store = world.store(Behaviour())
    in_force = store.collateral_for(world.quote)

    store.close()

    assert store.collateral_for(world.quote) == in_force
    with pytest.raises(CollateralUnavailableError, match="the store is closed"):
        store.refresh(world.model)


def test_what_settings_open_is_closed_with_them(world: PccsWorld) -> None:
    """At the end of the `with` block nothing is being fetched, and nothing will be."""
    urls = [world.serve(Behaviour())]
    with opened_collateral(world.folder, urls=urls, roots=world.roots, clock=world.clock) as store:
        assert isinstance(store, CollateralStore)
        store.collateral_for(world.quote)

    wait_until(lambda: not is_fetching(world))
    with pytest.raises(CollateralUnavailableError, match="the store is closed"):
        store.refresh(world.model)
