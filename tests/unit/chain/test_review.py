"""A proposal's hashes against files in hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.chain.action_data import AppVersion, RegisterSet
from dstack.chain.client import checked_address
from dstack.chain.operator import Action, Content, Kind
from dstack.chain.review import Finding, MeasuredImage, Result, reproduce
from dstack.cli.govern.image_folder import measure_image
from dstack.errors import InputError, MeasurementMalformedError
from dstack.measurement.event_log import replay_event_log
from dstack.simulator.os_image import SimulatedImage, make_image
from dstack.values import ComposeHash, Register

APP = checked_address("0x" + "a1" * 20, what="app")
COMPOSE = ComposeHash(b"\x01" * 32)


@pytest.fixture
def image() -> SimulatedImage:
    """An OS image."""
    return make_image()


@pytest.fixture
def folder(image: SimulatedImage, tmp_path: Path) -> str:
    """Its files on disk."""
    for name, content in image.files.items():
        (tmp_path / name).write_bytes(content)
    return str(tmp_path)


def content_of(image: SimulatedImage, *, rtmr1: Register | None = None) -> Content:
    """A version on *image*, with the registers of one shape of machine."""
    config = image.vm_config()
    replayed = replay_event_log(image.boot_log(config))
    registers = RegisterSet(image.mr_td(config), replayed[0], rtmr1 or replayed[1], replayed[2], None)
    version = AppVersion(1, COMPOSE, (image.os_image_hash,), (registers,))
    return Content((Action(Kind.VERSION, APP, version.encode()),), (), (), "")


def test_compose_hash_image_and_registers_are_reproduced(image: SimulatedImage, folder: str) -> None:
    """From an app-compose.json and an image folder, every value is made again."""
    findings = reproduce(content_of(image), [COMPOSE], [measure_image(folder)])

    assert [(finding.what, finding.result) for finding in findings] == [
        ("compose hash", Result.REPRODUCED),
        ("OS image hash", Result.REPRODUCED),
        ("registers MRTD, RTMR1 and RTMR2", Result.REPRODUCED),
    ]


def test_a_register_that_differs_is_found(image: SimulatedImage, folder: str) -> None:
    """One other register is enough."""
    wrong = content_of(image, rtmr1=Register(b"\x11" * 48))

    assert reproduce(wrong, [COMPOSE], [measure_image(folder)])[2].result is Result.DIFFERS


def test_without_files_nothing_is_reproduced(image: SimulatedImage) -> None:
    """What nobody gave is not looked at, which is not the same as wrong."""
    assert {finding.result for finding in reproduce(content_of(image), [], [])} == {Result.NOT_LOOKED_AT}


def test_a_file_that_the_proposal_does_not_name_differs(image: SimulatedImage) -> None:
    """Another compose file than the proposed one makes two findings: the hash is missing, and the file is strange."""
    other = ComposeHash(b"\x09" * 32)
    findings = reproduce(content_of(image), [other], [MeasuredImage(image.os_image_hash, {})])

    assert Finding("compose hash", COMPOSE.hex(), Result.DIFFERS) in findings
    assert Finding("app-compose.json, which the proposal does not name", other.hex(), Result.DIFFERS) in findings


def test_a_changed_image_file_is_refused(folder: str) -> None:
    """Every file that the list names is hashed."""
    path = Path(folder) / "initramfs.cpio.gz"
    path.write_bytes(path.read_bytes() + b"\0")

    with pytest.raises(MeasurementMalformedError, match=r"initramfs.cpio.gz: not the file that sha256sum.txt lists"):
        measure_image(folder)


def test_a_missing_image_file_is_refused(folder: str) -> None:
    """An incomplete folder is not an image."""
    (Path(folder) / "bzImage").unlink()

    with pytest.raises(InputError, match="bzImage: cannot be read"):
        measure_image(folder)
