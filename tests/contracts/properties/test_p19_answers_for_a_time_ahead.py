"""P19: views answer for a time in the future: "what is allowed at T"."""

from __future__ import annotations

from typing import Any

import pytest
from web3.exceptions import ContractLogicError

from tests.governed_world import (
    COMPOSE,
    DAY,
    DEVICE,
    FREEZE,
    GRANTED,
    IMAGE,
    Action,
    GovernedWorld,
    Kind,
    decoded_error,
    registers,
    version_data,
)

NEXT = b"\xc2" * 32
NO = (False, "Compose hash not allowed")


def test_p19_the_answer_for_a_time_is_the_answer_at_that_time(governed: GovernedWorld) -> None:
    """Freeze, sunset and their order: each edge answered ahead is what is then answered."""
    governed.grant(governed.image(), governed.version(1), governed.compose(NEXT))
    sunset = governed.now + 20 * DAY
    governed.deny(governed.sunset(1, sunset), governed.freeze())
    thawed = governed.now + FREEZE
    times = [governed.now, thawed - 1, thawed, thawed + 1, sunset - 1, sunset, sunset + 1]

    ahead = [(governed.allowed_at(at), governed.allowed_at(at, NEXT)) for at in times]
    then = []
    for at in times:
        governed.warp_to(at)
        asked = governed.operator.functions.isAllowed
        then.append((tuple(asked(governed.workload()).call()), tuple(asked(governed.workload(NEXT)).call())))

    frozen = (False, "App is frozen")
    assert ahead == then
    assert ahead == [(frozen, frozen)] * 2 + [(GRANTED, GRANTED)] * 3 + [(NO, GRANTED)] * 2


def test_p19_every_gate_has_its_words(governed: GovernedWorld) -> None:
    """The gates open one after the other, in the order of the interface; the first that is closed is named."""
    other_kms = governed.proxy("KmsAuth", "initialize", governed.owner, governed.app_implementation)
    app = governed.own_app(governed.stranger)
    workload = (other_kms.address, governed.app.address, COMPOSE, IMAGE, (b"",) * 5)
    at = governed.now

    def ask(**changes: Any) -> tuple[bool, str]:
        return governed.allowed_at(governed.now, app=app.address, **changes)

    answers = [tuple(governed.operator.functions.isAllowedAt(workload, at).call()), ask()]
    governed.send(governed.stranger, app, "transferOwnership", governed.operator.address)
    governed.send(governed.owner, governed.operator, "adopt", app.address)
    answers.append(ask())
    governed.send(governed.stranger, governed.kms, "registerApp", app.address)
    governed.deny(governed.freeze(app=app.address))
    answers.append(ask())
    governed.warp_to(governed.now + FREEZE)
    answers.append(ask())
    governed.grant(governed.image())
    answers.append(ask())
    governed.grant(Action(Kind.VERSION, app.address, version_data(1, register_sets=[registers(1)])))
    answers += [ask(registers=registers(2)), ask(registers=registers(1)), ask()]

    assert answers == [
        (False, "Not governed by this operator"),
        (False, "Not governed by this operator"),
        (False, "App not registered"),
        (False, "App is frozen"),
        (False, "OS image is not allowed"),
        NO,
        (False, "Registers not allowed"),
        GRANTED,
        GRANTED,
    ]


def test_p19_what_nobody_announced_has_its_words_too(governed: GovernedWorld) -> None:
    """An app that allowed something before it came here is a no until a proposal about it was executed."""
    governed.grant(governed.image())
    app = governed.own_app(governed.stranger, COMPOSE)
    governed.send(governed.stranger, governed.kms, "registerApp", app.address)
    governed.send(governed.stranger, app, "transferOwnership", governed.operator.address)
    governed.send(governed.owner, governed.operator, "adopt", app.address)
    before = governed.allowed_at(governed.now, app=app.address)

    governed.grant(Action(Kind.DEVICE, app.address, DEVICE))

    assert (before, governed.allowed_at(governed.now, app=app.address)) == ((False, "Not announced"), GRANTED)


def test_p19_the_past_is_not_answered(governed: GovernedWorld) -> None:
    """What was allowed follows from the events; the view refuses rather than guess."""
    now = governed.now

    with pytest.raises(ContractLogicError) as refusal:
        governed.allowed_at(now - 1)

    assert decoded_error(refusal.value) == ("TimePassed", now - 1, now)


def test_p19_what_waits_does_not_count(governed: GovernedWorld) -> None:
    """A proposal may still be cancelled: nothing is promised before it is executed."""
    proposal = governed.propose(governed.image(), governed.compose())

    assert governed.allowed_at(proposal.ready_at + DAY) == (False, "OS image is not allowed")


def test_p19_the_app_answers_for_a_time_itself(governed: GovernedWorld) -> None:
    """Configuration and registers, without KmsAuth."""
    governed.grant(governed.version(1, register_sets=[registers(1)]))
    end = governed.now + DAY
    governed.deny(governed.sunset(1, end))
    functions = governed.app.functions

    assert [functions.isConfigurationAllowed(COMPOSE, IMAGE, at).call() for at in (end - 1, end)] == [True, False]
    answers = [functions.areRegistersAllowed(COMPOSE, registers(1), at).call() for at in (end - 1, end)]
    assert answers == [True, False]
