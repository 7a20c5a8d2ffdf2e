"""What starting Linux measures: RTMR1 and RTMR2, from the digests of kernel, command line and initrd.

Source: measurement.md 4 and 5.
"""

from __future__ import annotations

from hashlib import sha384

from dstack.errors import MeasurementMalformedError
from dstack.measurement.firmware import EV_SEPARATOR, SEPARATOR
from dstack.measurement.prediction import Input, Origin, PredictedEvent, digested, measured
from dstack.values import Register

# TCG event types, as OVMF and Linux's EFI stub use them.
EV_EVENT_TAG = 6
EV_EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003
EV_EFI_ACTION = 0x8000_0007

MAX_CMDLINE = 64 * 1024
# It is in memory whole while it is measured.
MAX_INITRD = 512 * 1024 * 1024

# QEMU tells the kernel where the initrd is by appending this to the image's command line.
_INITRD_ARGUMENT = " initrd=initrd"


def rtmr1_events(kernel_authenticode: Register, *, origin: Origin = Origin.COMPUTED) -> tuple[PredictedEvent, ...]:
    """List what is extended into RTMR1.

    Args:
        kernel_authenticode: SHA-384 of the kernel as QEMU patched it, in the manner of Authenticode.
        origin: Where that comes from.
    """
    label = "kernel, as QEMU patched it (Authenticode)"
    depends_on = (Input.KERNEL, Input.INITRD, Input.MEMORY)
    return (
        digested(1, EV_EFI_BOOT_SERVICES_APPLICATION, kernel_authenticode, label, *depends_on, origin=origin),
        _action(b"Calling EFI Application from Boot Option"),
        measured(1, EV_SEPARATOR, SEPARATOR, "separator", Input.VARIANT),
        _action(b"Exit Boot Services Invocation"),
        _action(b"Exit Boot Services Returned with Success"),
    )


def rtmr2_events(
    cmdline: Register, initrd: Register, *, origin: Origin = Origin.COMPUTED
) -> tuple[PredictedEvent, ...]:
    """List what is extended into RTMR2: the digests of the command line and of the initrd."""
    return (
        digested(2, EV_EVENT_TAG, cmdline, "kernel command line", Input.CMDLINE, Input.ROOTFS, origin=origin),
        digested(2, EV_EVENT_TAG, initrd, "initrd", Input.INITRD, origin=origin),
    )


def cmdline_preimage(cmdline: str) -> bytes:
    """Give the command line of an image's metadata.json as the kernel's EFI stub measures it.

    Args:
        cmdline: Without the `initrd=` argument that QEMU adds.

    Raises:
        MeasurementMalformedError: Too long, or not text that a command line can hold.
    """
    if len(cmdline) > MAX_CMDLINE or "\0" in cmdline:
        raise MeasurementMalformedError(f"command line: want at most {MAX_CMDLINE} characters and no NUL")
    try:
        return (cmdline + _INITRD_ARGUMENT + "\0").encode("utf-16-le")
    except UnicodeEncodeError as exc:
        raise MeasurementMalformedError("command line: want Unicode text") from exc


def cmdline_digest(cmdline: str) -> Register:
    """Digest what `cmdline_preimage` gives."""
    return Register(sha384(cmdline_preimage(cmdline)).digest())


def initrd_digest(initrd: bytes) -> Register:
    """Digest an initrd file."""
    return Register(sha384(initrd).digest())


def _action(text: bytes) -> PredictedEvent:
    return measured(1, EV_EFI_ACTION, text, f"action: {text.decode()}", Input.VARIANT)
