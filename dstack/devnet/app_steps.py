"""Steps 5 and 6: an allowed app gets its keys; everything else is refused, each by a named rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dstack.attestation.quote import TdReport
from dstack.attestation.report_data import report_data
from dstack.devnet.evidence import appraised, keep_evidence
from dstack.devnet.governance import Governance
from dstack.devnet.kms_steps import RunningKms
from dstack.devnet.plan import Plan
from dstack.devnet.programs import Program
from dstack.devnet.transcript import demand
from dstack.devnet.world import Machine, World, boot_answer
from dstack.simulator.os_image import make_image
from dstack.simulator.pki import SimulatedPki
from dstack.transport.agent import AgentClient


@dataclass(frozen=True, slots=True)
class Attempt:
    """A start that must be refused.

    Attributes:
        what: For the reader.
        machine: What is started.
        by: Who must refuse it.
        rule: By which rule.
        step: Of verification, where that is what refuses.
    """

    what: str
    machine: Machine
    by: str
    rule: str
    step: str = ""


def app_machine(plan: Plan, kms: RunningKms, name: str) -> Machine:
    """The machine that the owners planned."""
    return Machine(
        name, plan.app_compose, app_id=plan.app_id, instance_id_seed=plan.instance_id_seed, kms_urls=(kms.url,)
    )


def start_app(world: World, plan: Plan, kms: RunningKms) -> None:
    """Step 5: start the app, and compare its quote with what was computed."""
    say = world.say
    machine = replace(app_machine(plan, kms, "app"), options=("--verify-kms",))
    answer = boot_answer(machine.start(world))
    demand(answer.get("ready") is True, f"the app did not get its keys: {answer.get('error')}")
    say.did("GetTempCaCert: the app certified a key of its own and had a quote bound to it")
    say.did("GetAppKey over RA-TLS: app and KMS verified each other's quotes; the chain allowed both; keys received")

    nonce = report_data("app-data", world.secret.name.encode())
    evidence = AgentClient(machine.socket(world)).evidence(nonce)
    appraisal = appraised(world, evidence)
    keep_evidence(say, "app", evidence)
    demand(appraisal.rtmr3_boot == plan.rtmr3_at_boot, "RTMR3 at boot-mr-done differs from the one computed in step 2")
    say.proved(f"RTMR3 when it asked for keys is the one computed in step 2: {plan.rtmr3_at_boot.hex()}")
    complete = plan.rtmr3_complete(world, kms.ca_spki)
    body = appraisal.verified.quote.body
    demand(
        isinstance(body, TdReport) and body.rtmr3 == complete,
        "RTMR3 of the running app differs from the one computed from the KMS's public key",
    )
    say.proved(f"RTMR3 of the running app, with the KMS's public key, was computed too: {complete.hex()}")
    say.proved(f"TCB status {appraisal.verified.tcb_status.value}, OS image {appraisal.os_image_hash.hex()}")


def refuse_everything_else(world: World, plan: Plan, kms: RunningKms) -> None:
    """Step 6, first part: five starts that differ from the allowed one in one thing each."""
    good = app_machine(plan, kms, "refused")
    foreign = SimulatedPki.generate(datetime.now(UTC))
    foreign.save(world.secret / "foreign-platform")
    image = make_image("somebody-elses-image")
    image.save(world.secret / "foreign-image")
    changed = plan.app_compose.replace(b'"docker_compose_file": "', b'"docker_compose_file": "# one comment more\\n', 1)
    demand(changed != plan.app_compose, "the compose file could not be changed")

    def variant(name: str, change: Callable[[Machine], Machine]) -> Machine:
        return change(replace(good, name=f"refused-{name}"))

    attempts = (
        Attempt(
            "a compose file with one comment more",
            variant("compose", lambda m: replace(m, app_compose=changed)),
            "AppAuth",
            "COMPOSE_HASH",
        ),
        Attempt(
            "an OS image that the chain does not allow",
            variant("image", lambda m: replace(m, image=world.secret / "foreign-image", vm_config=image.vm_config())),
            "KmsAuth",
            "OS_IMAGE",
        ),
        Attempt(
            "a machine in debug mode",
            variant("debug", lambda m: replace(m, options=("--debug",))),
            "the verifier",
            "QUOTE_UNTRUSTED",
            "step 14",
        ),
        Attempt(
            "a quote under a foreign root",
            variant("root", lambda m: replace(m, platform=world.secret / "foreign-platform")),
            "the verifier",
            "QUOTE_UNTRUSTED",
            "step 3",
        ),
        Attempt(
            "a stale platform, where the app demands UpToDate",
            variant("tcb", lambda m: replace(m, options=("--tcb-status", "OutOfDate"))),
            "AppAuth",
            "TCB_STATUS",
        ),
    )
    started = [(attempt, attempt.machine.start(world)) for attempt in attempts]
    for attempt, program in started:
        must_be_refused(world, attempt, program)


def revoke(world: World, governance: Governance, plan: Plan, kms: RunningKms) -> None:
    """Step 6, second part: the owners deny at once, and the same machine gets no keys when it starts again."""
    governance.deny_compose_hash(plan.app_id, plan.compose_hash, world)
    machine = app_machine(plan, kms, "refused-revoked")
    attempt = Attempt("the same app after its compose hash was removed", machine, "AppAuth", "COMPOSE_HASH")
    must_be_refused(world, attempt, machine.start(world))


def must_be_refused(world: World, attempt: Attempt, program: Program) -> None:
    """See that a start is refused by the rule it must be refused by."""
    answer = boot_answer(program)
    demand(answer.get("ready") is not True, f"{attempt.what}: got keys")
    rule, reason = str(answer.get("rule")), str(answer.get("error"))
    as_wanted = rule == attempt.rule and attempt.step in reason
    demand(as_wanted, f"{attempt.what}: want rule {attempt.rule} {attempt.step}, got {rule}: {reason}")
    world.say.refused(attempt.what, by=attempt.by, rule=rule, reason=reason)
