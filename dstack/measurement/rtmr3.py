"""RTMR3 predicted from what an auditor knows: the boot sequences of every dstack release (guest.md 3.3, 3.4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from dstack.errors import MeasurementInputMissingError, MeasurementMalformedError
from dstack.measurement.event_log import RuntimeEvent, runtime_event_digest
from dstack.measurement.identities import key_provider_payload
from dstack.measurement.registers import replay
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, OsImageHash, Register

SYSTEM_PREPARING = "system-preparing"
BOOT_MR_DONE = "boot-mr-done"
SYSTEM_READY = "system-ready"
OUR_SEQUENCE = "0.6-pre"
STORAGE_FILE_SYSTEMS = ("zfs", "ext4")
MAX_INIT_SCRIPTS = 5

_V0_4 = (SYSTEM_PREPARING, "rootfs-hash", "app-id", "compose-hash", "instance-id", BOOT_MR_DONE)
_V0_5 = (SYSTEM_PREPARING, "app-id", "compose-hash", "instance-id", BOOT_MR_DONE)
_V0_5_0 = (*_V0_5, "mr-kms", "key-provider", SYSTEM_READY)
_V0_5_4 = (*_V0_5, "mr-kms", "os-image-hash", "key-provider", SYSTEM_READY)
_V0_5_7 = (*_V0_5, "mr-kms", "os-image-hash", "key-provider", "storage-fs", SYSTEM_READY)

# Events in order, by release. Some are emitted on a condition, or more than once: `_PAYLOADS` knows.
SEQUENCES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "0.3.2": ("rootfs-hash", "app-id", "upgraded-app-id", "ca-cert-hash", "instance-id"),
        "0.3.6": ("rootfs-hash", "app-id", "compose-hash", "ca-cert-hash", "instance-id"),
        "dev-0.4.0": (*_V0_4, "key-provider", SYSTEM_READY),
        "0.5.0": _V0_5_0,
        "0.5.1": _V0_5_4,
        "0.5.4": _V0_5_4,
        "0.5.5": _V0_5_7,
        "0.5.7": _V0_5_7,
        "0.6-pre": (*_V0_5, "os-image-hash", "key-provider", "storage-fs", SYSTEM_READY),
        "head": (
            *(SYSTEM_PREPARING, "app-id", "compose-hash", "init-script-hash", "gpu-policy-hash", "gpu-attestation"),
            *("instance-id", BOOT_MR_DONE, "os-image-hash", "key-provider", "storage-fs", SYSTEM_READY),
        ),
    }
)

# The newest release with each sequence (guest.md 3.3); from 0.6.0 on a release does not decide.
_RELEASES: tuple[tuple[tuple[int, int, int], str], ...] = (
    ((0, 3, 2), "0.3.2"),
    ((0, 3, 6), "0.3.6"),
    ((0, 4, 0), "dev-0.4.0"),
    ((0, 5, 0), "0.5.0"),
    ((0, 5, 4), "0.5.4"),
    ((0, 5, 11), "0.5.7"),
)
# A fourth number, as in `dev-v0.4.0.0`, decides nothing.
_RELEASE = re.compile(r"(?:dstack-)?(?:dev-)?v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:\.\d{1,4})?", re.ASCII)

# What dstack itself emits in any release; an app must not emit these names.
SYSTEM_EVENTS = frozenset(name for sequence in SEQUENCES.values() for name in sequence)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootInputs:
    """What goes into RTMR3; a sequence asks only for what its release measures.

    Attributes:
        app_id: The app.
        compose_hash: Of its app-compose.json.
        instance_id: None for an app with `no_instance_id`: the event is there, with an empty payload.
        key_provider: `none`, `local`, `kms` or `tpm`.
        key_provider_id: See `key_provider_payload`.
        os_image_hash: As the KMS answers it; measured with the key provider `kms` only.
        mr_kms: mrAggregated of the KMS; measured with `kms` only, and if the KMS's certificate carries evidence.
        storage_fs: `zfs` or `ext4`.
        init_script_hashes: SHA-256 of each init script, at most five.
        gpu_policy_hash: SHA-256 of the canonical GPU policy.
        gpu_attestation: Payload of that event; None without a GPU.
        rootfs_hash: The dm-verity root, where the kernel command line does not carry it.
        ca_cert_hash: SHA-256 of the KMS's CA file.
    """

    app_id: AppId
    compose_hash: ComposeHash
    instance_id: InstanceId | None = None
    key_provider: str = "none"
    key_provider_id: bytes = b""
    os_image_hash: OsImageHash | None = None
    mr_kms: Digest32 | None = None
    storage_fs: str | None = None
    init_script_hashes: tuple[Digest32, ...] = ()
    gpu_policy_hash: Digest32 | None = None
    gpu_attestation: bytes | None = None
    rootfs_hash: Digest32 | None = None
    ca_cert_hash: Digest32 | None = None


def boot_events(sequence: str, inputs: BootInputs, *, version: int = 1) -> tuple[RuntimeEvent, ...]:
    """List what a guest extends into RTMR3 from its start until `system-ready`.

    Apps may extend more events afterwards; append them to predict a later RTMR3.

    Args:
        sequence: A key of `SEQUENCES`.
        inputs: The facts.
        version: Of the digests, from `event_log_version` of the app-compose.json.

    Raises:
        MeasurementMalformedError: Unknown *sequence*, or an input that it measures is missing or wrong.
    """
    if sequence not in SEQUENCES:
        raise MeasurementMalformedError(f"boot sequence: want one of {', '.join(SEQUENCES)}, got {sequence[:80]!r}")
    return tuple(
        RuntimeEvent(name, payload, version) for name in SEQUENCES[sequence] for payload in _PAYLOADS[name](inputs)
    )


def sequence_of_release(version: str) -> str | None:
    """Name the boot sequence of an image's version, such as `0.5.7`; None where it does not decide."""
    match = _RELEASE.fullmatch(version)
    if match is None:
        return None
    release = int(match[1]), int(match[2]), int(match[3])
    return next((sequence for last, sequence in _RELEASES if release <= last), None)


def split_at_boot_mr_done(
    events: Sequence[RuntimeEvent],
) -> tuple[Sequence[RuntimeEvent], Sequence[RuntimeEvent]]:
    """Part the events measured when a guest asks for its keys (`boot-mr-done` is the last) from the later ones.

    Raises:
        MeasurementMalformedError: There is no `boot-mr-done`.
    """
    names = [event.name for event in events]
    if BOOT_MR_DONE not in names:
        raise MeasurementMalformedError(f"boot events: want {BOOT_MR_DONE}, got none")
    end = names.index(BOOT_MR_DONE) + 1
    return events[:end], events[end:]


def predict_rtmr3(events: Iterable[RuntimeEvent]) -> Register:
    """Compute RTMR3 from what is extended into it."""
    return replay(runtime_event_digest(event) for event in events)


def predict_legacy_rtmr3(rootfs_hash: Digest32, app_id: Digest32, ca_cert_hash: Digest32) -> Register:
    """Compute RTMR3 of the 2024 base image, which extends three raw values instead of events.

    Args:
        rootfs_hash: The dm-verity root.
        app_id: The whole SHA-256 of the docker-compose file.
        ca_cert_hash: SHA-256 of the CA certificate file.
    """
    return replay((rootfs_hash, app_id, ca_cert_hash))


def _required(name: str) -> Callable[[BootInputs], tuple[bytes, ...]]:
    def payloads(inputs: BootInputs) -> tuple[bytes, ...]:
        value: bytes | None = getattr(inputs, name)
        if value is None:
            raise MeasurementInputMissingError(f"this boot sequence measures {name}, and none was given")
        return (bytes(value),)

    return payloads


def _init_scripts(inputs: BootInputs) -> tuple[bytes, ...]:
    if len(inputs.init_script_hashes) > MAX_INIT_SCRIPTS:
        raise MeasurementMalformedError(
            f"init_script_hashes: want at most {MAX_INIT_SCRIPTS}, got {len(inputs.init_script_hashes)}"
        )
    return tuple(bytes(digest) for digest in inputs.init_script_hashes)


def _key_provider(inputs: BootInputs) -> tuple[bytes, ...]:
    if inputs.key_provider in ("kms", "local") and not inputs.key_provider_id:
        raise MeasurementInputMissingError("this boot sequence measures key_provider_id, and none was given")
    return (key_provider_payload(inputs.key_provider, inputs.key_provider_id),)


def _os_image_hash(inputs: BootInputs) -> tuple[bytes, ...]:
    return _required("os_image_hash")(inputs) if inputs.key_provider == "kms" else ()


def _mr_kms(inputs: BootInputs) -> tuple[bytes, ...]:
    return () if inputs.key_provider != "kms" or inputs.mr_kms is None else (bytes(inputs.mr_kms),)


def _storage_fs(inputs: BootInputs) -> tuple[bytes, ...]:
    if inputs.storage_fs not in STORAGE_FILE_SYSTEMS:
        raise MeasurementMalformedError(
            f"storage_fs: want one of {', '.join(STORAGE_FILE_SYSTEMS)}, got {inputs.storage_fs!r}"
        )
    return (inputs.storage_fs.encode(),)


_PAYLOADS: Mapping[str, Callable[[BootInputs], tuple[bytes, ...]]] = {
    SYSTEM_PREPARING: lambda _: (b"",),
    "rootfs-hash": _required("rootfs_hash"),
    "app-id": _required("app_id"),
    "upgraded-app-id": lambda inputs: (inputs.compose_hash[: AppId.SIZE],),
    "compose-hash": _required("compose_hash"),
    "ca-cert-hash": _required("ca_cert_hash"),
    "init-script-hash": _init_scripts,
    "gpu-policy-hash": _required("gpu_policy_hash"),
    "gpu-attestation": lambda inputs: () if inputs.gpu_attestation is None else (inputs.gpu_attestation,),
    "instance-id": lambda inputs: (bytes(inputs.instance_id or b""),),
    BOOT_MR_DONE: lambda _: (b"",),
    "mr-kms": _mr_kms,
    "os-image-hash": _os_image_hash,
    "key-provider": _key_provider,
    "storage-fs": _storage_fs,
    SYSTEM_READY: lambda _: (b"",),
}
