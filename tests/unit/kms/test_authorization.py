"""Evidence to permit: which rule refuses, and that not being able to ask is neither yes nor no."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest

from dstack.attestation.appraise import Appraisal
from dstack.attestation.collateral import Collateral
from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import Quote, parse_quote
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import AcceptStatus, VerificationPolicy
from dstack.errors import CollateralMalformedError, DstackError, KeyReleaseDeniedError, UnavailableError
from dstack.guest.platform import platform_evidence
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.vm_config import serialise_vm_config
from dstack.policy import BootInfo, Decision, Granted
from dstack.simulator.os_image import make_image
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.platform import Defects, SimulatedPlatform
from dstack.values import ReportData
from kms import authorization
from kms.authorization import Permit, authorize
from kms.decisions import Question, Subject
from tests.unit.kms.conftest import APP_ID, AT, BLOCK, COMPOSE_HASH, IMAGE, PKI, Machine, World, allow_kms, app_machine

BOUND = ReportData(bytes(range(64)))
QUESTION = Question(Subject.APP, "request-1")


def ask(world: World, machine: Machine) -> Permit:
    """Authorize the app that runs on *machine*."""
    return authorize(QUESTION, lambda: appraise(world, machine.evidence(BOUND)), world.chain.authorize_app)


def appraise(world: World, evidence: Evidence) -> Appraisal:
    """Appraise *evidence* that should carry BOUND."""
    return world.verifier.appraise(evidence, bound_to=BOUND)


def refusal(world: World, machine: Machine) -> KeyReleaseDeniedError:
    """The refusal of the app on *machine*."""
    with pytest.raises(KeyReleaseDeniedError, match="App not allowed: ") as refused:
        ask(world, machine)
    return refused.value


def last_line(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    """The last line of the decision log, without its time."""
    line: dict[str, object] = json.loads(caplog.records[-1].message)
    line.pop("at")
    return line


def test_permitted_app_gets_a_permit(world: World) -> None:
    """The permit names the machine and the block at which the chain said yes."""
    permit = ask(world, app_machine())

    assert permit.granted == Granted(BLOCK, gateway_app_id="0xgateway")
    assert (permit.boot.app_id, permit.boot.compose_hash) == (APP_ID, COMPOSE_HASH)
    assert (permit.boot.os_image_hash, permit.boot.tcb_status) == (IMAGE.os_image_hash, "UpToDate")
    assert world.chain.asked == [permit.boot]


def test_compose_hash_that_is_not_allowed_is_denied(world: World) -> None:
    """The contract's reason follows upstream's words, and rule and block are named."""
    world.chain.compose_hashes.clear()

    refused = refusal(world, app_machine())

    assert str(refused) == "App not allowed: Boot denied: Compose hash not allowed"
    assert (refused.rule, refused.block) == ("COMPOSE_HASH", BLOCK.number)


def test_os_image_that_is_not_allowed_is_denied(world: World) -> None:
    """The chain is asked about the image that the registers prove."""
    other = make_image("another")

    refused = refusal(world, app_machine(image=other))

    assert (refused.rule, world.chain.asked[0].os_image_hash) == ("OS_IMAGE", other.os_image_hash)


@pytest.mark.parametrize(
    ("machine", "rule", "message"),
    [
        (app_machine(pki=SimulatedPki.generate(AT, seed=b"stranger")), "QUOTE_UNTRUSTED", "not a configured root"),
        (app_machine(defects=Defects(debug=True)), "QUOTE_UNTRUSTED", "step 14"),
        (app_machine(defects=Defects(tcb_status="OutOfDate")), "QUOTE_UNTRUSTED", "step 19: TCB status OutOfDate"),
        (app_machine(defects=Defects(tcb_status="Revoked")), "QUOTE_UNTRUSTED", "Revoked"),
    ],
    ids=["foreign root", "debug", "out of date", "revoked"],
)
def test_evidence_that_is_not_genuine_is_refused(world: World, machine: Machine, rule: str, message: str) -> None:
    """A quote of another root, of a debuggable machine or of a weak platform never reaches the chain."""
    refused = refusal(world, machine)

    assert (refused.rule, refused.block, world.chain.asked) == (rule, None, [])
    assert message in str(refused)


def test_accepted_status_reaches_the_chain(make_world: Callable[..., World]) -> None:
    """What the settings accept is told to the contracts as it is, and they decide."""
    world = make_world(VerificationPolicy(relaxations=(AcceptStatus(TcbStatus.OUT_OF_DATE, AT + timedelta(days=1)),)))

    assert ask(world, app_machine(defects=Defects(tcb_status="OutOfDate"))).boot.tcb_status == "OutOfDate"


def test_evidence_for_another_key_is_refused(world: World) -> None:
    """Evidence that carries other report data than its connection demands is refused."""
    other = app_machine().evidence(ReportData(bytes(64)))

    with pytest.raises(KeyReleaseDeniedError, match="App not allowed: report data") as refused:
        authorize(QUESTION, lambda: appraise(world, other), world.chain.authorize_app)

    assert refused.value.rule == "APPRAISAL"


def test_log_that_does_not_replay_is_refused(world: World) -> None:
    """An event log that was tampered with does not lead to the quoted RTMR3."""
    genuine = app_machine().evidence(BOUND)
    tampered = replace(genuine, runtime_events=genuine.runtime_events[:-1])

    with pytest.raises(KeyReleaseDeniedError, match="App not allowed: RTMR3: want"):
        authorize(QUESTION, lambda: appraise(world, tampered), world.chain.authorize_app)


def test_image_is_never_merely_claimed(world: World) -> None:
    """A VM config that names another image than the registers prove is refused, whoever sends it."""
    evidence = app_machine().evidence(BOUND)
    claimed = app_machine(image=make_image("another")).platform.config

    with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: Failed to verify os image hash: MRTD: want"):
        authorize(
            QUESTION,
            lambda: world.verifier.appraise(evidence, bound_to=BOUND, vm_config=claimed),
            world.chain.authorize_app,
        )


def test_machine_without_an_app_is_refused(world: World) -> None:
    """A machine that measured no app id has no app to get keys for."""
    platform = SimulatedPlatform(PKI, IMAGE, serialise_vm_config(IMAGE.vm_config()), COMPOSE_HASH)
    platform.extend(RuntimeEvent("compose-hash", COMPOSE_HASH))
    evidence = platform_evidence(platform, BOUND)

    with pytest.raises(KeyReleaseDeniedError, match="want an app-id event of 20 bytes, got none"):
        authorize(QUESTION, lambda: appraise(world, evidence), world.chain.authorize_app)


@pytest.mark.parametrize("missing", ["chain", "collateral"])
def test_not_being_able_to_ask_is_neither_yes_nor_no(world: World, missing: str) -> None:
    """Without the chain, or without collateral, there is no permit and no denial."""
    if missing == "chain":
        world.chain.reachable = False
    else:
        world.collateral.collateral = None

    with pytest.raises(UnavailableError, match=f"could not ask: {missing}: "):
        ask(world, app_machine())


def test_our_own_bad_collateral_is_not_held_against_the_caller(world: World) -> None:
    """Collateral that cannot be read is a fault on our side."""

    class Broken:
        def collateral_for(self, quote: Quote) -> Collateral:
            raise CollateralMalformedError("collateral: not JSON")

    verifier = replace(world.verifier, collateral=Broken())
    evidence = app_machine().evidence(BOUND)

    with pytest.raises(UnavailableError, match="could not ask: collateral cannot be used: collateral: not JSON"):
        authorize(QUESTION, lambda: verifier.appraise(evidence, bound_to=BOUND), world.chain.authorize_app)


def test_own_decision_is_asked_every_time(world: World) -> None:
    """Evidence about ourselves is kept for minutes; the chain's decision is not kept at all."""
    allow_kms(world)
    question = Question(Subject.SELF, "request-2")
    world.own.require(question)

    world.chain.kms_machines.clear()
    with pytest.raises(KeyReleaseDeniedError) as refused:
        world.own.require(question)

    assert str(refused.value) == "KMS self authorization failed: KMS is not allowed: Aggregated MR not allowed"
    assert (refused.value.rule, refused.value.block) == ("AGGREGATED_MR", BLOCK.number)
    assert len(world.machine.asked) == 1


@pytest.mark.parametrize(("passed", "fetched"), [(timedelta(minutes=4), 1), (timedelta(minutes=5), 2)])
def test_own_evidence_is_renewed(world: World, passed: timedelta, fetched: int) -> None:
    """After five minutes our own evidence is fetched and verified anew."""
    world.own.appraisal()
    world.clock.now += passed
    world.own.appraisal()

    assert len(world.machine.asked) == fetched


def test_own_evidence_that_runs_out_stops_the_service(world: World) -> None:
    """When our collateral has run out, nothing is released any more."""
    allow_kms(world)
    world.clock.now += timedelta(days=40)

    with pytest.raises(KeyReleaseDeniedError, match="KMS self authorization failed: step ") as refused:
        world.own.require(Question(Subject.SELF, "request-3"))

    assert refused.value.rule == "QUOTE_UNTRUSTED"


def test_granted_line_says_who_and_on_what_grounds(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The line of a yes holds who, block, digest of the signed evidence, root, and that it is simulated."""
    caplog.set_level(logging.INFO, "kms.decisions")
    machine = app_machine()

    boot = ask(world, machine).boot

    signed = parse_quote(machine.platform.quote(BOUND)).signed
    assert last_line(caplog) == {
        "subject": "app",
        "request": "request-1",
        "decision": "granted",
        "block": BLOCK.number,
        "block_hash": BLOCK.hash.hex(),
        "app_id": boot.app_id.hex(),
        "instance_id": (boot.instance_id or b"").hex(),
        "compose_hash": boot.compose_hash.hex(),
        "device_id": boot.device_id.hex(),
        "os_image_hash": boot.os_image_hash.hex(),
        "mr_aggregated": boot.mr_aggregated.hex(),
        "tcb_status": "UpToDate",
        "evidence": sha256(signed).hexdigest(),
        "root": sha256(PKI.root_der).hexdigest(),
        "simulated": True,
        "acpi_source": "from-log",
        "acpi_tables_verified": False,
    }


def test_denied_line_names_the_rule(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The line of a no holds the rule, the contract's words and what was seen."""
    caplog.set_level(logging.INFO, "kms.decisions")
    world.chain.compose_hashes.clear()
    refusal(world, app_machine())

    line = last_line(caplog)

    assert [line[name] for name in ("decision", "rule", "reason", "got", "block", "simulated")] == [
        "denied",
        "COMPOSE_HASH",
        "Compose hash not allowed",
        "what was seen",
        BLOCK.number,
        True,
    ]


@pytest.mark.parametrize(
    ("reachable", "machine", "decision", "rule"),
    [
        (False, app_machine(), "unavailable", "COULD_NOT_ASK"),
        (True, app_machine(defects=Defects(debug=True)), "refused", "QUOTE_UNTRUSTED"),
    ],
)
def test_line_of_a_question_the_chain_did_not_decide(
    world: World, caplog: pytest.LogCaptureFixture, reachable: bool, machine: Machine, decision: str, rule: str
) -> None:
    """What was refused before the chain, or could not be asked, has its line too, and no block."""
    caplog.set_level(logging.INFO, "kms.decisions")
    world.chain.reachable = reachable

    with pytest.raises(DstackError, match=r"not ask|not allowed"):
        ask(world, machine)

    line = last_line(caplog)
    assert (line["decision"], line["rule"], "block" in line) == (decision, rule, False)


def test_a_kms_that_is_watched_answers_for_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no secret rests on the last answer about this KMS, for as long as that is recent; nobody waits."""
    monkeypatch.setattr(world.own, "_watch", lambda *_: None)
    question = Question(Subject.SELF, "request-1")
    with world.own.watched():
        with pytest.raises(KeyReleaseDeniedError, match="KMS self authorization failed: KMS is not allowed: "):
            world.own.require_recent(question)
        allow_kms(world)
        world.own.require(question)
        asked = len(world.chain.asked)
        world.chain.reachable = False

        world.own.require_recent(question)

        assert len(world.chain.asked) == asked
        monkeypatch.setattr(authorization, "_RECENT_SECONDS", 0.0)
        with pytest.raises(UnavailableError, match="could not ask: no answer of the chain within the last 0 s"):
            world.own.require_recent(question)


def test_a_recent_denial_is_told_as_it_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The denial of a moment ago names its rule and block again, and holds although the chain would allow it now."""
    monkeypatch.setattr(world.own, "_watch", lambda *_: None)
    question = Question(Subject.SELF, "request-1")
    with world.own.watched():
        with pytest.raises(KeyReleaseDeniedError, match="Aggregated MR not allowed"):
            world.own.require(question)
        allow_kms(world)

        with pytest.raises(KeyReleaseDeniedError, match="Aggregated MR not allowed") as refused:
            world.own.require_recent(question)

        assert (refused.value.rule, refused.value.block) == ("AGGREGATED_MR", BLOCK.number)


def test_the_watch_asks_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KMS that the chain permits meanwhile is known to be permitted without anybody asking."""
    monkeypatch.setattr(authorization, "_WATCH_SECONDS", 0.01)
    with world.own.watched():
        allow_kms(world)
        deadline = time.monotonic() + 10

        while time.monotonic() < deadline:
            with suppress(KeyReleaseDeniedError):
                world.own.require_recent(Question(Subject.SELF, "request-1"))
                break
            time.sleep(0.01)
        assert time.monotonic() < deadline


def test_the_watch_does_what_else_there_is_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, whether or not the chain permits this KMS; not after the end."""
    monkeypatch.setattr(authorization, "_WATCH_SECONDS", 0.01)
    done: list[float] = []
    with world.own.watched(also=lambda: done.append(time.monotonic())):
        deadline = time.monotonic() + 10
        while len(done) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    before = len(done)
    time.sleep(0.05)

    assert (len(done) >= 3, len(done)) == (True, before)


def test_the_watch_outlives_a_defect(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is not the last answer: without the watch nobody gets a temporary CA."""
    monkeypatch.setattr(authorization, "_WATCH_SECONDS", 0.01)
    allow_kms(world)
    asked, authorize_kms = threading.Event(), world.chain.authorize_kms

    def first_fails(boot: BootInfo) -> Decision:
        if asked.is_set():
            return authorize_kms(boot)
        asked.set()
        raise ZeroDivisionError

    monkeypatch.setattr(world.chain, "authorize_kms", first_fails)
    with world.own.watched():
        deadline = time.monotonic() + 10
        while not world.chain.asked and time.monotonic() < deadline:
            time.sleep(0.01)

    assert world.chain.asked


def test_a_slow_yes_does_not_come_over_a_later_no(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is the answer to the question that was asked last, whichever came last."""
    monkeypatch.setattr(world.own, "_watch", lambda *_: None)
    allow_kms(world)
    question, authorize_kms = Question(Subject.SELF, "request-1"), world.chain.authorize_kms
    asked, go_on = threading.Event(), threading.Event()

    def slow_at_first(boot: BootInfo) -> Decision:
        decision = authorize_kms(boot)
        if not asked.is_set():
            asked.set()
            go_on.wait(30)
        return decision

    monkeypatch.setattr(world.chain, "authorize_kms", slow_at_first)
    with world.own.watched():
        slow = threading.Thread(target=world.own.require, args=(question,))
        slow.start()
        assert asked.wait(30)
        world.chain.kms_machines.clear()
        with pytest.raises(KeyReleaseDeniedError, match="Aggregated MR not allowed"):
            world.own.require(question)
        go_on.set()
        slow.join()

        with pytest.raises(KeyReleaseDeniedError, match="Aggregated MR not allowed"):
            world.own.require_recent(question)
