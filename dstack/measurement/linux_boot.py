"""What starting Linux measures: RTMR1 and RTMR2, from the digests of kernel, command line and initrd.

Source: measurement.md 4 and 5. Computing the Authenticode digest of a kernel that QEMU patched is not here yet.
"""

from __future__ import annotations

from hashlib import sha384

from dstack.measurement.event_log import Event
from dstack.measurement.firmware import EV_SEPARATOR, SEPARATOR
from dstack.values import Register

# TCG event types, as OVMF and Linux's EFI stub use them.
EV_EVENT_TAG = 6
EV_EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003
EV_EFI_ACTION = 0x8000_0007

# QEMU tells the kernel where the initrd is by appending this to the image's command line.
_INITRD_ARGUMENT = " initrd=initrd"


def rtmr1_events(kernel_authenticode: Register) -> tuple[Event, ...]:
    """List what is extended into RTMR1.

    Args:
        kernel_authenticode: SHA-384 of the kernel as QEMU patched it, in the manner of Authenticode.
    """
    return (
        Event(1, EV_EFI_BOOT_SERVICES_APPLICATION, kernel_authenticode, "", b""),
        _action(b"Calling EFI Application from Boot Option"),
        Event(1, EV_SEPARATOR, sha384(SEPARATOR).digest(), "", b""),
        _action(b"Exit Boot Services Invocation"),
        _action(b"Exit Boot Services Returned with Success"),
    )


def rtmr2_events(cmdline: Register, initrd: Register) -> tuple[Event, ...]:
    """List what is extended into RTMR2: the digests of the command line and of the initrd."""
    return Event(2, EV_EVENT_TAG, cmdline, "", b""), Event(2, EV_EVENT_TAG, initrd, "", b"")


def cmdline_digest(cmdline: str) -> Register:
    """Digest the command line of an image's metadata.json, as the kernel's EFI stub receives it.

    Args:
        cmdline: Without the `initrd=` argument that QEMU adds.
    """
    return Register(sha384((cmdline + _INITRD_ARGUMENT + "\0").encode("utf-16-le")).digest())


def initrd_digest(initrd: bytes) -> Register:
    """Digest an initrd file."""
    return Register(sha384(initrd).digest())


def _action(text: bytes) -> Event:
    return Event(1, EV_EFI_ACTION, sha384(text).digest(), "", b"")
