"""Predicted events: what a machine must have extended, in words, with what that depends on.

A reader who meets a wrong register learns from here which event it is about and which input to look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha384

from dstack.measurement.event_log import Event, RuntimeEvent, logged, runtime_event_preimage
from dstack.measurement.registers import replay
from dstack.values import Register

# A longer preimage is shown by its length and origin only.
MAX_SHOWN_PREIMAGE = 1024


class Input(StrEnum):
    """What a measured value follows from."""

    FIRMWARE = "image: firmware"
    KERNEL = "image: kernel"
    INITRD = "image: initrd"
    CMDLINE = "image: kernel command line"
    MEMORY = "VM shape: memory size"
    DEVICES = "VM shape: CPUs and devices"
    QEMU = "QEMU version of the host"
    COMPOSE = "app-compose.json"
    APP_ID = "app id"
    INSTANCE = "instance id"
    KEY_PROVIDER = "key provider (KMS)"
    OS_IMAGE = "OS image hash, as the KMS answered it"
    MR_KMS = "measurement of the KMS"
    STORAGE = "file system of the disk"
    GPU = "attached GPUs"
    ROOTFS = "image: root file system"
    CA_CERT = "CA certificate of the KMS"
    RELEASE = "release of the guest"
    APP = "the app itself"
    VARIANT = "firmware variant (the same for all images of it)"


class Origin(StrEnum):
    """Where a digest comes from."""

    COMPUTED = "computed"
    DOCUMENT = "measurement document"
    OWN_QEMU = "own-qemu"
    CAPTURED = "captured"
    HELPER = "helper"
    FROM_LOG = "from-log"


@dataclass(frozen=True, slots=True)
class PredictedEvent:
    """One event a machine must extend.

    Attributes:
        event: With its register and digest.
        label: What it is, in a few words.
        depends_on: The inputs that change it; a register depends on those of all its events.
        origin: Where the digest comes from.
        preimage: What was hashed; None where only the digest is known, or where it is a large file.
    """

    event: Event
    label: str
    depends_on: tuple[Input, ...]
    origin: Origin = Origin.COMPUTED
    preimage: bytes | None = None


def measured(imr: int, event_type: int, data: bytes, label: str, *depends_on: Input) -> PredictedEvent:
    """Predict the event of some bytes."""
    # The payload of a boot event describes it and is not measured; stripped logs leave it out, and so do we.
    event = Event(imr, event_type, sha384(data).digest(), "", b"")
    return PredictedEvent(event, label, depends_on, preimage=data if len(data) <= MAX_SHOWN_PREIMAGE else None)


def digested(
    imr: int, event_type: int, digest: Register, label: str, *depends_on: Input, origin: Origin = Origin.COMPUTED
) -> PredictedEvent:
    """Predict an event whose digest is known already."""
    return PredictedEvent(Event(imr, event_type, digest, "", b""), label, depends_on, origin)


def runtime(event: RuntimeEvent) -> PredictedEvent:
    """Predict a runtime event; its name is its label."""
    depends_on = RUNTIME_INPUTS.get(event.name, (Input.APP,))
    return PredictedEvent(logged(event), readable(event.name), depends_on, preimage=runtime_event_preimage(event))


def readable(name: str) -> str:
    """Give a name that somebody else chose in a form that cannot steer a terminal."""
    return name[:80] if name.isprintable() else repr(name)[:80]


def plain(events: Iterable[PredictedEvent]) -> tuple[Event, ...]:
    """Give the events alone."""
    return tuple(predicted.event for predicted in events)


def register_of(imr: int, events: Sequence[PredictedEvent]) -> Register:
    """Fold the events of one register."""
    return replay(predicted.event.extended for predicted in events if predicted.event.imr == imr)


# What the payload of each event of RTMR3 follows from (guest.md 3.3, 3.4).
RUNTIME_INPUTS: dict[str, tuple[Input, ...]] = {
    "system-preparing": (Input.RELEASE,),
    "boot-mr-done": (Input.RELEASE,),
    "system-ready": (Input.RELEASE,),
    "rootfs-hash": (Input.ROOTFS,),
    "app-id": (Input.APP_ID, Input.COMPOSE),
    "upgraded-app-id": (Input.COMPOSE,),
    "compose-hash": (Input.COMPOSE,),
    "ca-cert-hash": (Input.CA_CERT,),
    "init-script-hash": (Input.COMPOSE,),
    "gpu-policy-hash": (Input.COMPOSE,),
    "gpu-attestation": (Input.GPU,),
    "instance-id": (Input.INSTANCE, Input.APP_ID),
    "mr-kms": (Input.MR_KMS,),
    "os-image-hash": (Input.OS_IMAGE,),
    "key-provider": (Input.KEY_PROVIDER,),
    "storage-fs": (Input.STORAGE, Input.COMPOSE),
}
