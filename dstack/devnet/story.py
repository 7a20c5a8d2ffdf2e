"""The demo's story in eight steps; each step is told by a module of its own."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

from dstack.devnet.app_steps import refuse_everything_else, revoke, start_app
from dstack.devnet.ending import end
from dstack.devnet.governance import Governance
from dstack.devnet.handover_steps import hand_over, plan_handover
from dstack.devnet.kms_steps import start_kms
from dstack.devnet.plan import plan_app
from dstack.devnet.world import World
from dstack.measurement.identities import INSTANCE_ID_SEED_SIZE


def tell(world: World, docker_compose: bytes, cleanup: ExitStack) -> None:
    """Run all steps on *docker_compose*; *cleanup* ends the chain.

    Raises:
        DemoFailedError: Something that had to be refused was not, or a value was not the one computed beforehand.
        UnavailableError: A program is missing or died.
    """
    say = world.say
    say.step(1, "Chain: three contracts, owned by a 2-of-3 Safe")
    say.did("all machines here are SIMULATED: their quotes end at a root made for this demo, configured everywhere")
    governance = Governance.deploy(world, cleanup)

    say.step(2, "Offline: what the compose file will measure, before anything boots")
    plan = plan_app(world, docker_compose, governance.app, secrets.token_bytes(INSTANCE_ID_SEED_SIZE))
    handover = plan_handover(docker_compose, governance.handover_app)

    say.step(3, "KMS: no keys before the chain allows its measurement")
    kms = start_kms(world, governance)

    say.step(4, "Owners: propose, wait 48 hours, execute")
    governance.allow_apps({plan.app_id: plan.compose_hash, handover.app_id: handover.old_hash}, world)

    say.step(5, "App: gets its keys, because its quote is what was computed")
    start_app(world, plan, kms)

    say.step(6, "Refusals: everything else, each by a named rule")
    refuse_everything_else(world, plan, kms)
    revoke(world, governance, plan, kms)

    say.step(7, "Handover: a secure file goes from an old node to a new one, without the KMS")
    pending = governance.propose_app(handover.app_id, handover.new_hash, world)
    hand_over(world, governance, handover, pending)

    say.step(8, "What was proven")
    end(world, governance, kms)
