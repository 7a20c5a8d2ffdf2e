"""Step 2: what a compose file will measure, computed before anything boots."""

from __future__ import annotations

from dataclasses import dataclass

from dstack.devnet.world import World
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash
from dstack.measurement.docker_compose import parse_docker_compose
from dstack.measurement.identities import derive_instance_id
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3, split_at_boot_mr_done
from dstack.values import AppId, ComposeHash, InstanceId, Register

STORAGE_FS = "zfs"


@dataclass(frozen=True, slots=True)
class Plan:
    """An app as its owners plan it.

    Attributes:
        app_compose: The bytes of app-compose.json.
        app_id: The address of its contract.
        instance_id_seed: 20 bytes that its host keeps.
        rtmr3_at_boot: RTMR3 when it asks for its keys: everything up to `boot-mr-done`.
    """

    app_compose: bytes
    app_id: AppId
    instance_id_seed: bytes
    rtmr3_at_boot: Register

    @property
    def compose_hash(self) -> ComposeHash:
        """What the owners allow."""
        return compose_hash(self.app_compose)

    @property
    def instance_id(self) -> InstanceId:
        """What the machine calls itself."""
        return derive_instance_id(self.instance_id_seed, self.app_id)

    def rtmr3_complete(self, world: World, ca_spki: bytes) -> Register:
        """RTMR3 once the app runs: the rest depends on the KMS's public key and the OS image it verified."""
        inputs = BootInputs(
            app_id=self.app_id,
            compose_hash=self.compose_hash,
            instance_id=self.instance_id,
            key_provider="kms",
            key_provider_id=ca_spki,
            os_image_hash=world.image.os_image_hash,
            storage_fs=STORAGE_FS,
        )
        return predict_rtmr3(boot_events(OUR_SEQUENCE, inputs))


def plan_app(world: World, docker_compose: bytes, app_id: AppId, instance_id_seed: bytes) -> Plan:
    """Turn the reader's compose file into a plan, and say what was computed."""
    say = world.say
    parsed = parse_docker_compose(docker_compose)
    raw = app_compose_from_docker_compose(docker_compose, name="demo", key_provider="kms")
    inputs = BootInputs(
        app_id=app_id,
        compose_hash=compose_hash(raw),
        instance_id=derive_instance_id(instance_id_seed, app_id),
        storage_fs=STORAGE_FS,
    )
    before_keys, _ = split_at_boot_mr_done(boot_events(OUR_SEQUENCE, inputs))
    plan = Plan(raw, app_id, instance_id_seed, predict_rtmr3(before_keys))
    say.keep("docker-compose.yaml", docker_compose)
    path = say.keep("app-compose.json", raw)
    say.did(f"services: {', '.join(service.name for service in parsed.services)}")
    if parsed.unpinned:
        names = ", ".join(service.name for service in parsed.unpinned)
        say.did(f"note: no digest pins the image of {names}: the measurement does not cover what is pulled")
    say.did(f"{path.name} has compose hash {plan.compose_hash.hex()}", compose_hash=plan.compose_hash.hex())
    say.did(f"app id {app_id.hex()} (its contract), instance id {plan.instance_id.hex()}", app_id=app_id.hex())
    say.did(f"RTMR3 when it asks for keys will be {plan.rtmr3_at_boot.hex()}", rtmr3_at_boot=plan.rtmr3_at_boot.hex())
    return plan
