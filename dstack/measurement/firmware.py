"""What OVMF measures into RTMR0: TD HOB, variables, ACPI blobs, boot options (measurement.md 3.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from dstack.errors import MeasurementMalformedError
from dstack.measurement.acpi import ACPI_EVENT_TYPE, ACPI_NAMES, ACPI_PAYLOAD
from dstack.measurement.event_log import Event
from dstack.measurement.prediction import Input, Origin, PredictedEvent, digested, measured
from dstack.measurement.td_hob import HobWitness, td_hob
from dstack.values import Register

# The order of events is a matter of the firmware's build; this is the only one whose images exist (measurement.md 3.1).
OVMF_VARIANT = "pre202505"

# TCG event types, as OVMF uses them.
EV_SEPARATOR = 4
EV_EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001
EV_EFI_VARIABLE_BOOT = 0x8000_0002
EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000A
EV_EFI_HANDOFF_TABLES2 = 0x8000_000B

_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_IMAGE_SECURITY_DATABASE = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
_SECURE_BOOT_VARIABLES = (
    ("SecureBoot", _GLOBAL_VARIABLE),
    ("PK", _GLOBAL_VARIABLE),
    ("KEK", _GLOBAL_VARIABLE),
    ("db", _IMAGE_SECURITY_DATABASE),
    ("dbx", _IMAGE_SECURITY_DATABASE),
)

# Content of an empty variable store of the 4 MiB layout (checked against Debian's OVMF.fd).
CFV_DIGEST = Register.from_hex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"
)
SEPARATOR = bytes(4)
_BOOT_ORDER = bytes(2)
# Load option of OVMF's UiApp: attributes, path length, description, device path (seen in a real event log).
_BOOT0000 = bytes.fromhex(
    "090100002c0055006900410070007000000004071400c9bdb87cebf8344faaea3ee4af6516a1"
    "0406140021aa2c4614760345836e8ab6f46623317fff0400"
)


def require_known_variant(variant: str | None) -> None:
    """Refuse firmware whose order of events is not known; None is the only one there ever was.

    Raises:
        MeasurementMalformedError: Another variant.
    """
    if variant not in (None, OVMF_VARIANT):
        raise MeasurementMalformedError(f"ovmf_variant: want {OVMF_VARIANT}, got {variant!r:.40}")


def rtmr0_events(
    witness: HobWitness,
    memory_size: int,
    acpi: Mapping[str, Register],
    *,
    cfv: Register = CFV_DIGEST,
    acpi_origin: Origin = Origin.FROM_LOG,
) -> tuple[PredictedEvent, ...]:
    """List what firmware of the variant `pre202505` extends into RTMR0.

    Args:
        witness: See `td_hob`.
        memory_size: See `td_hob`.
        acpi: Digest of each of `ACPI_NAMES`.
        cfv: Digest of the image's own variable store, where the image is at hand.
        acpi_origin: Where *acpi* comes from.

    Raises:
        MeasurementMalformedError: See `td_hob`; or *acpi* has other names.
    """
    if set(acpi) != set(ACPI_NAMES):
        raise MeasurementMalformedError(f"ACPI digests: want {', '.join(ACPI_NAMES)}, got {', '.join(sorted(acpi))}")
    hob = td_hob(witness, memory_size)
    return (
        measured(0, EV_EFI_HANDOFF_TABLES2, hob, "TD HOB (memory map)", Input.FIRMWARE, Input.MEMORY),
        digested(0, EV_EFI_PLATFORM_FIRMWARE_BLOB2, cfv, "CFV (variable store of the firmware)", Input.FIRMWARE),
        *_secure_boot_events(),
        measured(0, EV_SEPARATOR, SEPARATOR, "separator", Input.VARIANT),
        *_acpi_events(acpi, acpi_origin),
        measured(0, EV_EFI_VARIABLE_BOOT, _BOOT_ORDER, "boot option BootOrder", Input.VARIANT),
        measured(0, EV_EFI_VARIABLE_BOOT, _BOOT0000, "boot option Boot0000", Input.VARIANT),
    )


def empty_variable(name: str, guid: bytes) -> bytes:
    """Write a variable that is not set, as it is measured."""
    return guid + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")


def _secure_boot_events() -> Iterator[PredictedEvent]:
    for name, guid in _SECURE_BOOT_VARIABLES:
        data = empty_variable(name, guid)
        label = f"Secure Boot variable {name} (not set)"
        yield measured(0, EV_EFI_VARIABLE_DRIVER_CONFIG, data, label, Input.VARIANT)


def _acpi_events(acpi: Mapping[str, Register], origin: Origin) -> Iterator[PredictedEvent]:
    for name in ACPI_NAMES:
        event = Event(0, ACPI_EVENT_TYPE, acpi[name], name, ACPI_PAYLOAD)
        yield PredictedEvent(event, name, (Input.DEVICES, Input.MEMORY, Input.QEMU), origin)
