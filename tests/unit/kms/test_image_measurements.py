"""Machines of legacy mode: their image is measured from its files, and compared with their quote."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import pytest

from dstack.attestation.evidence import Evidence
from dstack.errors import (
    AppraisalError,
    ImageRefusedError,
    ImageUnavailableError,
    MeasurementMalformedError,
)
from dstack.measurement.acpi import ACPI_NAMES, AcpiDigests, AcpiSource, derive_acpi_blobs
from dstack.measurement.event_log import logged, replay_event_log
from dstack.measurement.image import CHECKSUM_FILE_NAME, os_image_hash
from dstack.measurement.machine import ImageFiles, image_digests, predict_boot
from dstack.measurement.prediction import plain
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3
from dstack.measurement.vm_config import VmConfig, serialise_vm_config
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import Digest32, OsImageHash, Register, ReportData
from dstack.vmm.acpi_sources import capture
from dstack.vmm.qtest import DEFAULT_QEMU, own_qemu_digests
from kms.acpi_tables import AcpiTables
from kms.evidence import EvidenceVerifier
from kms.image_cache import IMAGES, ImageCache, verify_image
from kms.image_measurements import ImageMeasurements
from tests.image_parts import Pe, acpi_tables, firmware
from tests.unit.kms.conftest import APP_ID, COMPOSE_HASH, PKI, World

BOUND_TO = ReportData(b"bound to this" + bytes(51))
FILES = {
    "ovmf.fd": firmware(),
    "bzImage": Pe().build(),
    "initrd": b"initial file system",
    "metadata.json": json.dumps(
        {"bios": "ovmf.fd", "kernel": "bzImage", "initrd": "initrd", "cmdline": "console=ttyS0"}
    ).encode(),
}
CHECKSUMS = b"".join(f"{sha256(content).hexdigest()}  {name}\n".encode() for name, content in FILES.items())
NAME = os_image_hash(CHECKSUMS)
CONFIG = VmConfig(os_image_hash=NAME, cpu_count=2, memory_size=2 << 30, qemu_version="9.1.0")
ACPI = AcpiDigests(
    MappingProxyType({name: Register(bytes((at,)) * 48) for at, name in enumerate(ACPI_NAMES)}),
    AcpiSource.FROM_LOG,
    "a test",
)


def evidence(files: dict[str, bytes] = FILES, config: VmConfig = CONFIG, acpi: AcpiDigests = ACPI) -> Evidence:
    """Evidence of a machine that runs these files, whatever its config says."""
    image = ImageFiles(
        firmware=files["ovmf.fd"], kernel=files["bzImage"], initrd=files["initrd"], cmdline="console=ttyS0"
    )
    log = plain(predict_boot(image_digests(image, CONFIG), CONFIG, acpi).events)
    runtime = boot_events(OUR_SEQUENCE, BootInputs(app_id=APP_ID, compose_hash=COMPOSE_HASH, storage_fs="zfs"))
    boot = replay_event_log(log)
    registers = TdRegisters(image_digests(image, CONFIG).mrtd, boot[0], boot[1], boot[2], predict_rtmr3(runtime))
    quote = make_quote(PKI, registers=registers, report_data=BOUND_TO)
    return Evidence(quote, (*log, *map(logged, runtime)), runtime, BOUND_TO, serialise_vm_config(config))


@dataclass
class Source:
    """Gives the files; implements `ImageSource`."""

    asked: int = 0

    def fetch(self, name: OsImageHash, folder: Path) -> None:
        """Always the same image."""
        self.asked += 1
        for each, content in {**FILES, CHECKSUM_FILE_NAME: CHECKSUMS}.items():
            (folder / each).write_bytes(content)


@pytest.fixture
def source() -> Source:
    """One that was not asked yet."""
    return Source()


@pytest.fixture
def measurements(tmp_path: Path, source: Source) -> ImageMeasurements:
    """Over an empty cache."""
    return ImageMeasurements(ImageCache(tmp_path, source))


def test_machine_that_runs_the_image_it_names_is_appraised(
    world: World, measurements: ImageMeasurements, source: Source
) -> None:
    """Its registers are computed from the files that its image's name leads to; each shape is measured once."""
    verifier = replace(world.verifier, image=measurements.digests)

    appraisals = [verifier.appraise(evidence(), bound_to=BOUND_TO) for _ in range(2)]

    assert [each.os_image_hash for each in appraisals] == [NAME, NAME]
    assert appraisals[0].acpi_tables_verified is False
    assert source.asked == 1


@pytest.mark.parametrize("part", ["ovmf.fd", "bzImage", "initrd"])
def test_machine_that_runs_another_is_refused(world: World, measurements: ImageMeasurements, part: str) -> None:
    """A machine that names an allowed image and runs another shows it in its registers."""
    other = {**FILES, part: _changed(part)}
    verifier = replace(world.verifier, image=measurements.digests)

    with pytest.raises(AppraisalError, match=r"^Failed to verify os image hash: (MRTD|RTMR0|RTMR1|RTMR2): want "):
        verifier.appraise(evidence(other), bound_to=BOUND_TO)


def _changed(part: str) -> bytes:
    if part == "ovmf.fd":
        raw = bytearray(FILES[part])
        raw[2 * 4096 + 10] ^= 1
        return bytes(raw)
    return FILES[part][:-1] + b"?"


def test_without_the_files_nothing_is_believed(world: World, tmp_path: Path) -> None:
    """An image that cannot be had leaves the question open: neither yes nor no."""
    verifier = replace(world.verifier, image=ImageMeasurements(ImageCache(tmp_path, None)).digests)

    with pytest.raises(ImageUnavailableError, match=r"core\.image\.download_url is unset"):
        verifier.appraise(evidence(), bound_to=BOUND_TO)
    with pytest.raises(MeasurementMalformedError, match="want lite, got legacy, which needs the image's files"):
        world.verifier.appraise(evidence(), bound_to=BOUND_TO)


@pytest.mark.parametrize("name", sorted(FILES))
def test_cache_that_was_changed_is_noticed(tmp_path: Path, source: Source, name: str) -> None:
    """Who can write to the cache cannot choose what is believed."""
    cache = ImageCache(tmp_path, source)
    cache.image(NAME)
    (tmp_path / IMAGES / NAME.hex() / name).write_bytes(b"changed")

    with pytest.raises(MeasurementMalformedError, match=f"{name} is missing or not what its list says"):
        ImageMeasurements(cache).digests(CONFIG)


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_replaced_after_the_check_is_noticed(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is measured are the very bytes that were compared with the list."""

    def verified_then_replaced(wanted: OsImageHash, folder: Path) -> dict[str, Digest32]:
        listed = verify_image(wanted, folder)
        (folder / name).write_bytes(FILES[name] + b"\0")
        return listed

    monkeypatch.setattr("kms.image_measurements.verify_image", verified_then_replaced)

    with pytest.raises(MeasurementMalformedError, match=f"{name}: not the file that sha256sum.txt lists"):
        ImageMeasurements(ImageCache(tmp_path, source)).digests(CONFIG)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        (None, r"its list lacks metadata\.json"),
        ({"bios": "other", "kernel": "bzImage", "initrd": "initrd", "cmdline": ""}, "its list lacks other"),
    ],
)
def test_image_that_does_not_say_what_it_is_made_of_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, what: str
) -> None:
    """Only files that the list names are measured."""
    files = {name: content for name, content in FILES.items() if name != "metadata.json"}
    if metadata is not None:
        files["metadata.json"] = json.dumps(metadata).encode()
    checksums = b"".join(f"{sha256(content).hexdigest()}  {name}\n".encode() for name, content in files.items())
    folder = tmp_path / IMAGES / os_image_hash(checksums).hex()
    folder.mkdir(parents=True)
    for name, content in {**files, CHECKSUM_FILE_NAME: checksums}.items():
        (folder / name).write_bytes(content)

    with pytest.raises(MeasurementMalformedError, match=what):
        ImageMeasurements(ImageCache(tmp_path, None)).digests(replace(CONFIG, os_image_hash=os_image_hash(checksums)))


TABLES = derive_acpi_blobs(acpi_tables())
REAL = AcpiDigests(TABLES.digests, AcpiSource.OWN_QEMU, "a test")


def asking(world: World, measurements: ImageMeasurements, source: str) -> EvidenceVerifier:
    """A verifier that takes ACPI tables from *source*."""
    return replace(world.verifier, image=measurements.digests, acpi=AcpiTables(source, measurements.cache).digests)


def helper(folder: Path, blob: bytes) -> str:
    """A program that prints *blob*, and writes down that it was asked."""
    (folder / "blob").write_bytes(blob)
    program = folder / "helper"
    program.write_text(f"#!/bin/sh\necho asked >> {folder}/asked\ncat {folder}/blob\n")
    program.chmod(0o700)
    return f"helper:{program}"


@pytest.mark.parametrize("kind", ["captured", "helper"])
def test_tables_of_a_named_source_are_verified(
    world: World, measurements: ImageMeasurements, tmp_path: Path, kind: str
) -> None:
    """A machine whose host gave it these tables is appraised as verified; with any others its RTMR0 differs."""
    capture(CONFIG, TABLES, tmp_path / "store", note="")
    source = f"captured:{tmp_path / 'store'}" if kind == "captured" else helper(tmp_path, TABLES.tables)
    verifier = asking(world, measurements, source)

    assert verifier.appraise(evidence(acpi=REAL), bound_to=BOUND_TO).acpi_tables_verified is True
    with pytest.raises(ImageRefusedError, match=r"^Failed to verify os image hash: RTMR0: want "):
        verifier.appraise(evidence(), bound_to=BOUND_TO)
    if kind == "helper":
        assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.skipif(shutil.which(DEFAULT_QEMU) is None, reason="qemu-system-x86 is not installed")
def test_tables_of_this_computers_qemu_are_verified(world: World, measurements: ImageMeasurements) -> None:
    """A host that runs the same QEMU gives its guest the tables that we get from it."""
    verifier = asking(world, measurements, "own-qemu")

    assert verifier.appraise(evidence(acpi=own_qemu_digests(CONFIG)), bound_to=BOUND_TO).acpi_tables_verified is True
    with pytest.raises(ImageRefusedError, match=r"^Failed to verify os image hash: RTMR0: want "):
        verifier.appraise(evidence(acpi=REAL), bound_to=BOUND_TO)


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ("captured:{}/none", "ACPI tables: captured: .*cannot be read"),
        ("captured:{}/store", "has none for this shape of machine"),
        ("helper:{}/none", "ACPI tables: helper: .*cannot be started"),
        ("own-qemu:{}/none", "ACPI tables: own-qemu: .*/none"),
    ],
)
def test_a_source_that_cannot_say_is_neither_yes_nor_no(
    world: World, measurements: ImageMeasurements, tmp_path: Path, named: str, what: str
) -> None:
    """Nothing is taken from the log instead."""
    capture(replace(CONFIG, cpu_count=4), TABLES, tmp_path / "store", note="")
    verifier = asking(world, measurements, named.format(tmp_path))

    with pytest.raises(ImageUnavailableError, match=what):
        verifier.appraise(evidence(acpi=REAL), bound_to=BOUND_TO)


def test_a_helper_that_prints_something_else_says_nothing(
    world: World, measurements: ImageMeasurements, tmp_path: Path
) -> None:
    """A broken program of ours is no refusal of the machine."""
    verifier = asking(world, measurements, helper(tmp_path, b"?"))

    with pytest.raises(ImageUnavailableError, match="ACPI tables: helper: "):
        verifier.appraise(evidence(acpi=REAL), bound_to=BOUND_TO)
