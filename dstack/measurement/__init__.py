"""What a machine measures, from what it is made of.

In: an app-compose.json, an OS image's measurement document, a VM's shape, an event log; all as bytes.
Out: compose hash and app id, RTMR3, the reference values of MRTD and RTMR0 to RTMR2, and digests that name instance,
machine and system. Nothing here knows who signed anything; that is `dstack.attestation`.

1. A register is 48 zero bytes, then SHA-384(register || digest) for each event, in order: `replay`.
2. A runtime event extends SHA-384(type || ":" || name || ":" || payload) into RTMR3, always computed and never read
   from a log: `runtime_event_digest`, `replay_event_log`.
3. The compose hash is the SHA-256 of the bytes of app-compose.json; its first 20 bytes are the default app id:
   `compose_hash`, `default_app_id`.
4. RTMR3 follows from compose hash, app id, instance id, key provider, image and release: `boot_events`,
   `predict_rtmr3`. It is one constant per app only with `no_instance_id`.
5. The os image hash is the SHA-256 of the image's sha256sum.txt, which lists its measurement document; from that and
   the VM's shape follow MRTD, RTMR0, RTMR1 and RTMR2: `reference_values`. The three ACPI digests come from the
   machine's own log, so the content of the ACPI tables is not verified.

Sources: the dstack formats for guests and for measurements; TDX module and TCG rules for registers and events.
"""

from dstack.measurement.compose import (
    AppCompose,
    app_compose_from_docker_compose,
    compose_hash,
    default_app_id,
    parse_app_compose,
)
from dstack.measurement.docker_compose import DockerCompose, Service, parse_docker_compose
from dstack.measurement.document import (
    MeasurementDocument,
    ReferenceValues,
    parse_measurement_document,
    reference_boot_events,
    reference_values,
    serialise_measurement_document,
)
from dstack.measurement.event_log import (
    Event,
    RuntimeEvent,
    parse_event_log,
    replay_event_log,
    runtime_event_digest,
    runtime_events,
    serialise_event_log,
)
from dstack.measurement.identities import (
    derive_instance_id,
    device_id,
    key_provider_payload,
    mr_aggregated,
    mr_key_provider,
    mr_system,
)
from dstack.measurement.image import os_image_hash, parse_checksum_file
from dstack.measurement.mr_config_id import mr_config_id_v1, mr_config_id_v2, mr_config_id_v3
from dstack.measurement.registers import extend, replay
from dstack.measurement.rtmr3 import BootInputs, boot_events, predict_legacy_rtmr3, predict_rtmr3
from dstack.measurement.vm_config import VmConfig, parse_vm_config, serialise_vm_config

__all__ = [
    "AppCompose",
    "BootInputs",
    "DockerCompose",
    "Event",
    "MeasurementDocument",
    "ReferenceValues",
    "RuntimeEvent",
    "Service",
    "VmConfig",
    "app_compose_from_docker_compose",
    "boot_events",
    "compose_hash",
    "default_app_id",
    "derive_instance_id",
    "device_id",
    "extend",
    "key_provider_payload",
    "mr_aggregated",
    "mr_config_id_v1",
    "mr_config_id_v2",
    "mr_config_id_v3",
    "mr_key_provider",
    "mr_system",
    "os_image_hash",
    "parse_app_compose",
    "parse_checksum_file",
    "parse_docker_compose",
    "parse_event_log",
    "parse_measurement_document",
    "parse_vm_config",
    "predict_legacy_rtmr3",
    "predict_rtmr3",
    "reference_boot_events",
    "reference_values",
    "replay",
    "replay_event_log",
    "runtime_event_digest",
    "runtime_events",
    "serialise_event_log",
    "serialise_measurement_document",
    "serialise_vm_config",
]
