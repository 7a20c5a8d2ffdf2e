"""The measurement document of an OS image, and the registers it predicts ("lite" mode, measurement.md 7).

A document holds the digests of an image's firmware, kernel, command line and initrd: enough to predict MRTD and RTMR0
to RTMR2 without the image. It is believed because the image's sha256sum.txt lists it, and that file's SHA-256 is the
os image hash that the chain allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256, sha384
from hmac import compare_digest
from types import MappingProxyType

import cbor2

from dstack.errors import MeasurementMalformedError
from dstack.measurement.acpi import AcpiDigests, AcpiSource, acpi_digests
from dstack.measurement.event_log import Event
from dstack.measurement.firmware import CFV_DIGEST, OVMF_VARIANT
from dstack.measurement.image import os_image_hash, parse_checksum_file
from dstack.measurement.kernel import kernel_digest
from dstack.measurement.linux_boot import cmdline_digest, initrd_digest, rtmr1_events, rtmr2_events
from dstack.measurement.machine import BootDigests, ImageFiles, predict_boot
from dstack.measurement.mrtd import mrtd
from dstack.measurement.prediction import Origin, plain, register_of
from dstack.measurement.td_hob import (
    HIGH_MEMORY,
    LOW_MEMORY_END,
    HobWitness,
    parse_hob_witness,
    serialise_hob_witness,
)
from dstack.measurement.tdvf import parse_firmware
from dstack.measurement.vm_config import VmConfig
from dstack.values import OsImageHash, Register

DOCUMENT_NAME = "measurement.tdx.cbor"
DOCUMENT_VERSION = 3
MAX_DOCUMENT = 64 * 1024
_DEPTH = 3
_KNOWN_SHAPES = 64


@dataclass(frozen=True, slots=True)
class MeasurementDocument:
    """The digests of one OS image.

    Attributes:
        cmdline: Of the kernel command line, `initrd=` included.
        kernel_authenticode: Of the kernel as QEMU patches it for 2 GiB, or for 2816 MiB and more, of memory.
        initrd: Of the initrd file.
        mrtd_single_pass: MRTD if each page is extended as it is added (QEMU 9 and later).
        mrtd_two_pass: MRTD if all pages of a section are added first (QEMU 8).
        hob: The memory that the firmware accepts by itself.
    """

    cmdline: Register
    kernel_authenticode: Register
    initrd: Register
    mrtd_single_pass: Register
    mrtd_two_pass: Register
    hob: HobWitness


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """The registers of a machine that runs one OS image.

    Attributes:
        acpi_source: Where the ACPI digests came from. From the machine's own log they verify nothing: the host may
            have given it tables of its choice.
    """

    mrtd: Register
    rtmr0: Register
    rtmr1: Register
    rtmr2: Register
    os_image_hash: OsImageHash
    acpi_source: AcpiSource


def parse_measurement_document(raw: bytes) -> MeasurementDocument:
    """Read a measurement document.

    Args:
        raw: CBOR, version 3, at most 64 KiB.

    Raises:
        MeasurementMalformedError: Another form: also a duplicate or unknown field, or bytes left over.
    """
    value = _decode(raw)
    document = _fields(value, ("version", "image", "tdvf"), "document")
    if type(document["version"]) is not int or document["version"] != DOCUMENT_VERSION:
        raise _malformed(f"want version {DOCUMENT_VERSION}, got {document['version']!r:.20}")
    image = _fields(document["image"], ("cmdline_sha384", "kernel_authenticode", "initrd_sha384"), "image")
    tdvf = _fields(document["tdvf"], ("ovmf", "mrtd", "td_hob"), "tdvf")
    mrtd = _fields(tdvf["mrtd"], ("single_pass", "two_pass"), "mrtd")
    if tdvf["ovmf"] != OVMF_VARIANT:
        raise _malformed(f"want ovmf {OVMF_VARIANT}, got {tdvf['ovmf']!r:.40}")
    # One text, one encoding: shortest lengths, and nothing behind the document.
    if cbor2.dumps(value) != raw:
        raise _malformed("want the shortest encoding and no bytes behind it")
    return MeasurementDocument(
        cmdline=_register(image["cmdline_sha384"], "cmdline_sha384"),
        kernel_authenticode=_register(image["kernel_authenticode"], "kernel_authenticode"),
        initrd=_register(image["initrd_sha384"], "initrd_sha384"),
        mrtd_single_pass=_register(mrtd["single_pass"], "single_pass"),
        mrtd_two_pass=_register(mrtd["two_pass"], "two_pass"),
        hob=parse_hob_witness(_byte_string(tdvf["td_hob"], "td_hob")),
    )


def serialise_measurement_document(document: MeasurementDocument) -> bytes:
    """Write a measurement document, byte for byte as an image build does."""
    return cbor2.dumps(
        {
            "version": DOCUMENT_VERSION,
            "image": {
                "cmdline_sha384": bytes(document.cmdline),
                "kernel_authenticode": bytes(document.kernel_authenticode),
                "initrd_sha384": bytes(document.initrd),
            },
            "tdvf": {
                "ovmf": OVMF_VARIANT,
                "mrtd": {
                    "single_pass": bytes(document.mrtd_single_pass),
                    "two_pass": bytes(document.mrtd_two_pass),
                },
                "td_hob": serialise_hob_witness(document.hob),
            },
        }
    )


def reference_values(
    config: VmConfig,
    events: Sequence[Event],
    *,
    image: Callable[[VmConfig], BootDigests] | None = None,
    acpi: Callable[[VmConfig], AcpiDigests] | None = None,
) -> ReferenceValues:
    """Predict MRTD and RTMR0 to RTMR2 of a machine that runs the image which *config* names.

    Says nothing of whether that image is allowed, nor of the content of its ACPI tables.

    Args:
        config: As its host states it; in lite mode it carries the image's checksum file and measurement document.
        events: Its event log, full or stripped; only the three ACPI events are used.
        image: Measures the files of the image that a config of legacy mode names; None where nobody has them.
        acpi: Says which ACPI tables a machine of this shape has, asked once its image is known; None for its own log.

    Raises:
        MeasurementMalformedError: Legacy mode without *image*, or one of the numbered steps failed.
        EventLogMalformedError: The log has not exactly the three ACPI events.
    """
    claimed = acpi_digests(events)
    if image is not None and config.tdx_attestation_variant == "legacy":
        return _predicted(image(config), config, _logged(claimed) if acpi is None else acpi(config))
    _lite_digests(config)
    known = _logged(claimed) if acpi is None else acpi(config)
    return _lite_values(config, known.source, tuple(sorted(known.by_name.items())))


# Machines of one image and shape have the same reference values: they follow from these arguments and nothing else.
@lru_cache(maxsize=_KNOWN_SHAPES)
def _lite_values(config: VmConfig, source: AcpiSource, acpi: tuple[tuple[str, Register], ...]) -> ReferenceValues:
    return _predicted(_lite_digests(config), config, AcpiDigests(MappingProxyType(dict(acpi)), source, ""))


@lru_cache(maxsize=_KNOWN_SHAPES)
def _lite_digests(config: VmConfig) -> BootDigests:
    return document_digests(accepted_document(config), config)


def _logged(acpi: dict[str, Register]) -> AcpiDigests:
    return AcpiDigests(MappingProxyType(acpi), AcpiSource.FROM_LOG, "the machine's own event log")


def _predicted(digests: BootDigests, config: VmConfig, acpi: AcpiDigests) -> ReferenceValues:
    # (3), (4) The shape is one that the document describes; the registers.
    registers = predict_boot(digests, config, acpi).registers
    return ReferenceValues(
        mrtd=registers["mrtd"],
        rtmr0=registers["rtmr0"],
        rtmr1=registers["rtmr1"],
        rtmr2=registers["rtmr2"],
        os_image_hash=config.os_image_hash,
        acpi_source=acpi.source,
    )


def reference_boot_events(
    document: MeasurementDocument, config: VmConfig, acpi: Mapping[str, Register]
) -> tuple[Event, ...]:
    """List what a machine extends into RTMR0 to RTMR2 before dstack starts, in the order of each register.

    Args:
        document: Of its image.
        config: Its shape.
        acpi: Digest of each ACPI blob, by event name.

    Raises:
        MeasurementMalformedError: A shape that the document does not describe.
    """
    digests = AcpiDigests(MappingProxyType(dict(acpi)), AcpiSource.FROM_LOG, "")
    return plain(predict_boot(document_digests(document, config), config, digests).events)


def document_digests(document: MeasurementDocument, config: VmConfig) -> BootDigests:
    """Take from a document what a VM of one shape measures.

    Raises:
        MeasurementMalformedError: A memory size for which the document holds no kernel.
    """
    # (3) The document holds the kernel as QEMU patches it for these sizes only.
    if config.memory_size != LOW_MEMORY_END and config.memory_size < HIGH_MEMORY:
        raise MeasurementMalformedError(
            f"memory size: want {LOW_MEMORY_END}, or {HIGH_MEMORY} and more, got {config.memory_size}"
        )
    return BootDigests(
        mrtd=document.mrtd_two_pass if config.two_pass else document.mrtd_single_pass,
        witness=document.hob,
        cfv=CFV_DIGEST,
        kernel=document.kernel_authenticode,
        cmdline=document.cmdline,
        initrd=document.initrd,
        origin=Origin.DOCUMENT,
    )


def make_document(files: ImageFiles) -> MeasurementDocument:
    """Measure an image's files into the document that an image build puts beside them.

    Raises:
        MeasurementMalformedError: A file is not of its form; or the firmware's variable store is another than the
            document's readers assume.
    """
    firmware = parse_firmware(files.firmware)
    if sha384(firmware.cfv).digest() != CFV_DIGEST:
        raise MeasurementMalformedError("firmware: its variable store is not the one that a document stands for")
    return MeasurementDocument(
        cmdline=cmdline_digest(files.cmdline),
        kernel_authenticode=kernel_digest(files.kernel, initrd_size=len(files.initrd), memory_size=HIGH_MEMORY),
        initrd=initrd_digest(files.initrd),
        mrtd_single_pass=mrtd(firmware, two_pass=False),
        mrtd_two_pass=mrtd(firmware, two_pass=True),
        hob=firmware.witness,
    )


def shapeless_registers(document: MeasurementDocument) -> dict[str, Register]:
    """The registers that follow from the image alone, whatever the shape of the machine.

    RTMR0 is not among them: it also depends on memory size and on the host's ACPI tables. MRTD has two values, because
    QEMU 8 adds the firmware's pages in another order than later releases.
    """
    events = (*rtmr1_events(document.kernel_authenticode), *rtmr2_events(document.cmdline, document.initrd))
    return {
        "mrtd": document.mrtd_single_pass,
        "mrtd of QEMU 8": document.mrtd_two_pass,
        "rtmr1": register_of(1, events),
        "rtmr2": register_of(2, events),
    }


def accepted_document(config: VmConfig) -> MeasurementDocument:
    """Give the document that a VM config carries, if the image's checksum file lists it.

    Raises:
        MeasurementMalformedError: Not lite mode, or one of the numbered steps failed.
    """
    if config.tdx_attestation_variant != "lite":
        raise MeasurementMalformedError(
            f"tdx_attestation_variant: want lite, got {config.tdx_attestation_variant}, which needs the image's files"
        )
    if config.checksum_file is None or config.measurement is None:
        raise MeasurementMalformedError("tdx_measurement: it is missing, and lite mode needs it")

    # (1) The checksum file is the one that the os image hash names.
    if not compare_digest(os_image_hash(config.checksum_file), config.os_image_hash):
        raise MeasurementMalformedError("checksum file: its SHA-256 is not the os image hash")

    # (2) It lists this measurement document.
    listed = parse_checksum_file(config.checksum_file).get(DOCUMENT_NAME)
    if listed is None or not compare_digest(sha256(config.measurement).digest(), listed):
        raise MeasurementMalformedError(f"{DOCUMENT_NAME}: the checksum file does not list these bytes")
    return parse_measurement_document(config.measurement)


def _decode(raw: bytes) -> object:
    if len(raw) > MAX_DOCUMENT:
        raise _malformed(f"want at most {MAX_DOCUMENT} bytes, got {len(raw)}")
    try:
        return cbor2.loads(raw, max_depth=_DEPTH, allow_indefinite=False, allow_duplicate_keys=False)
    except cbor2.CBORDecodeError as exc:
        raise _malformed(f"not CBOR: {exc}") from exc


def _fields(value: object, names: Iterable[str], what: str) -> dict[str, object]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise _malformed(f"{what}: want a map of exactly {', '.join(names)}")
    return value


def _byte_string(value: object, what: str) -> bytes:
    if type(value) is not bytes:
        raise _malformed(f"{what}: want a byte string")
    return value


def _register(value: object, what: str) -> Register:
    raw = _byte_string(value, what)
    if len(raw) != Register.SIZE:
        raise _malformed(f"{what}: want {Register.SIZE} bytes, got {len(raw)}")
    return Register(raw)


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"measurement document: {message}")
