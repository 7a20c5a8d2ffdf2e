"""The local world of a demo: where its files lie, and how its machines are started."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dstack.devnet.programs import Program, Programs
from dstack.devnet.transcript import Transcript
from dstack.measurement.vm_config import VmConfig, serialise_vm_config
from dstack.simulator.os_image import SimulatedImage, make_image
from dstack.simulator.pki import SimulatedPki
from dstack.values import AppId

# A CVM answers within this many seconds, or something is wrong.
READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class World:
    """What all steps share.

    Attributes:
        say: The transcript; also keeps artifacts in the results folder.
        programs: Ends everything that was started.
        secret: A folder of mode 0700 for keys and sockets; removed at the end.
        pki: The simulated platform that the verifiers of this world are told to trust.
        image: The OS image that the owners allow.
        vm_config: The shape of every machine here.
    """

    say: Transcript
    programs: Programs
    secret: Path
    pki: SimulatedPki
    image: SimulatedImage
    vm_config: VmConfig

    @classmethod
    def create(cls, say: Transcript, programs: Programs, secret: Path) -> World:
        """Make the simulated platform and the OS image, and keep their public parts."""
        pki = SimulatedPki.generate(datetime.now(UTC))
        image = make_image("dstack-demo-0.6")
        world = cls(say, programs, secret, pki, image, image.vm_config())
        pki.save(world.platform)
        image.save(secret / "image")
        for name in ("root.der", "collateral.json"):
            say.keep(f"platform/{name}", (world.platform / name).read_bytes())
        for name, content in image.files.items():
            say.keep(f"image/{name}", content)
        return world

    def start_pccs(self) -> str:
        """Start the maker's collateral service, in the shape of Intel's; returns its URL.

        Raises:
            ToolUnavailableError: It does not start.
        """
        program = self.programs.start("pccs", "dstack.simulator", "pccs", "--pki", str(self.platform))
        return str(program.next_answer(READY_SECONDS).get("url"))

    @property
    def platform(self) -> Path:
        """The folder with the simulated platform's keys and collateral."""
        return self.secret / "platform"


@dataclass(frozen=True, slots=True)
class Machine:
    """One simulated CVM to start: what its host gives it, and what is wrong with it, if anything.

    Attributes:
        name: Of its folder, its log and its socket.
        app_compose: The bytes that it measures.
        app_id: Pinned by its host; None takes the default, from the compose hash.
        instance_id_seed: 20 bytes, kept by its host from boot to boot.
        kms_urls: Where it asks for keys.
        platform: Folder of a simulated platform; None takes the world's.
        image: Folder of an OS image; None takes the world's.
        vm_config: Of that image.
        options: Further words for the simulator.
    """

    name: str
    app_compose: bytes
    app_id: AppId | None = None
    instance_id_seed: bytes | None = None
    kms_urls: tuple[str, ...] = ()
    platform: Path | None = None
    image: Path | None = None
    vm_config: VmConfig | None = None
    options: tuple[str, ...] = ()

    def socket(self, world: World) -> Path:
        """Where its guest agent listens."""
        return world.secret / f"{self.name}.sock"

    def state(self, world: World) -> Path:
        """Where it keeps what it must not lose; holds keys."""
        return world.secret / "state" / self.name

    def start(self, world: World) -> Program:
        """Write what its host shares with it, and start it; `boot_answer` waits for it."""
        shared = world.secret / "shared" / self.name
        shared.mkdir(parents=True)
        (shared / "app-compose.json").write_bytes(self.app_compose)
        (shared / ".sys-config.json").write_text(json.dumps(self._system_configuration(world)))
        (shared / ".instance_info").write_text(json.dumps(self._instance()))
        return world.programs.start(
            self.name,
            "dstack.simulator",
            "cvm",
            *("--pki", str(self.platform or world.platform)),
            *("--image", str(self.image or world.secret / "image")),
            *("--host-shared", str(shared)),
            *("--state", str(self.state(world))),
            *("--socket", str(self.socket(world))),
            *self.options,
        )

    def _system_configuration(self, world: World) -> dict[str, Any]:
        return {
            "kms_urls": list(self.kms_urls),
            "gateway_urls": [],
            "vm_config": serialise_vm_config(self.vm_config or world.vm_config),
        }

    def _instance(self) -> dict[str, str]:
        known = {"app_id": self.app_id, "instance_id_seed": self.instance_id_seed}
        return {name: value.hex() for name, value in known.items() if value is not None}


def boot_answer(program: Program) -> dict[str, Any]:
    """What a machine says once it has booted, or why it could not: `{"ready": true, ...}` or `{"error": ...}`.

    Raises:
        ToolUnavailableError: It says nothing.
    """
    return program.next_answer(READY_SECONDS)
