"""A machine's registers before dstack starts: MRTD and RTMR0 to RTMR2, from an image, a VM's shape and ACPI digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha384
from typing import Self

from dstack.errors import MeasurementMalformedError
from dstack.measurement.acpi import AcpiDigests
from dstack.measurement.authenticode import MAX_PE
from dstack.measurement.firmware import require_known_variant, rtmr0_events
from dstack.measurement.image import ImageMetadata
from dstack.measurement.kernel import kernel_digest
from dstack.measurement.linux_boot import MAX_INITRD, cmdline_preimage, initrd_digest, rtmr1_events, rtmr2_events
from dstack.measurement.mrtd import mrtd
from dstack.measurement.prediction import Origin, PredictedEvent, register_of
from dstack.measurement.td_hob import HobWitness
from dstack.measurement.tdvf import MAX_FIRMWARE, parse_firmware
from dstack.measurement.vm_config import VmConfig
from dstack.values import Register


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """The measured files of an OS image; the root file system enters through the command line."""

    firmware: bytes
    kernel: bytes
    initrd: bytes
    cmdline: str
    ovmf_variant: str | None = None

    @classmethod
    def named(cls, metadata: ImageMetadata, read: Callable[[str, int], bytes]) -> Self:
        """Take the files that an image's metadata.json names.

        Says nothing of whether they are the image's: compare each with its sha256sum.txt.

        Args:
            metadata: Names them.
            read: Gives a file by its name; more than the second argument's bytes it refuses.
        """
        return cls(
            firmware=read(metadata.firmware, MAX_FIRMWARE),
            kernel=read(metadata.kernel, MAX_PE),
            initrd=read(metadata.initrd, MAX_INITRD),
            cmdline=metadata.cmdline,
            ovmf_variant=metadata.ovmf_variant,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BootDigests:
    """What an image contributes to the registers of a VM of one shape.

    Attributes:
        mrtd: The register.
        witness: See `td_hob`.
        cfv: Digest of the firmware's variable store.
        kernel: Authenticode digest of the kernel as QEMU patched it.
        cmdline: Digest of the command line.
        cmdline_preimage: What *cmdline* is the digest of; None where only that is known.
        initrd: Digest of the initrd.
        origin: The image's files, or its measurement document.
    """

    mrtd: Register
    witness: HobWitness
    cfv: Register
    kernel: Register
    cmdline: Register
    initrd: Register
    cmdline_preimage: bytes | None = None
    origin: Origin = Origin.COMPUTED


@dataclass(frozen=True, slots=True)
class BootPrediction:
    """What a machine must show.

    Attributes:
        mrtd: The register.
        events: Of RTMR0 (none without ACPI digests), RTMR1 and RTMR2.
    """

    mrtd: Register
    events: tuple[PredictedEvent, ...]

    @property
    def registers(self) -> Mapping[str, Register]:
        """The registers by name: `rtmr0` is missing where the ACPI digests are."""
        imrs = sorted({predicted.event.imr for predicted in self.events})
        return {"mrtd": self.mrtd} | {f"rtmr{imr}": register_of(imr, self.events) for imr in imrs}


def image_digests(files: ImageFiles, config: VmConfig) -> BootDigests:
    """Measure an image's files for a VM of one shape.

    Says nothing of whether they are the files of an allowed image: compare their SHA-256 with its sha256sum.txt.

    Raises:
        MeasurementMalformedError: A file is not of its form, or the shape is one whose measurement is not known.
    """
    check_shape(config)
    require_known_variant(files.ovmf_variant)
    firmware = parse_firmware(files.firmware)
    preimage = cmdline_preimage(files.cmdline)
    return BootDigests(
        mrtd=mrtd(firmware, two_pass=config.two_pass),
        witness=firmware.witness,
        cfv=Register(sha384(firmware.cfv).digest()),
        kernel=kernel_digest(files.kernel, initrd_size=len(files.initrd), memory_size=config.memory_size),
        cmdline=Register(sha384(preimage).digest()),
        initrd=initrd_digest(files.initrd),
        cmdline_preimage=preimage,
    )


def predict_boot(digests: BootDigests, config: VmConfig, acpi: AcpiDigests | None) -> BootPrediction:
    """List what a machine extends before dstack starts.

    Args:
        digests: Of its image, for this shape.
        config: Its shape.
        acpi: Of its ACPI blobs; without them RTMR0 is not predicted.

    Raises:
        MeasurementMalformedError: A shape whose measurement is not known.
    """
    check_shape(config)
    first: tuple[PredictedEvent, ...] = ()
    if acpi is not None:
        origin = Origin(acpi.source)
        first = rtmr0_events(digests.witness, config.memory_size, acpi.by_name, cfv=digests.cfv, acpi_origin=origin)
    return BootPrediction(
        digests.mrtd,
        (
            *first,
            *rtmr1_events(digests.kernel, origin=digests.origin),
            *rtmr2_events(digests.cmdline, digests.initrd, origin=digests.origin),
        ),
    )


def check_shape(config: VmConfig) -> None:
    """Refuse a shape whose measurement is not known.

    Raises:
        MeasurementMalformedError: A software TPM, an unknown order of events, or no CPU.
    """
    require_known_variant(config.ovmf_variant)
    if config.swtpm:
        raise MeasurementMalformedError("swtpm: a machine with a software TPM measures events we do not know")
    if not config.cpu_count:
        raise MeasurementMalformedError("cpu_count: want at least one")
