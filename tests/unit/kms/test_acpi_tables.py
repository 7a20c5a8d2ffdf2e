"""Nothing is granted on ACPI tables that nobody has seen, unless a setting says so; then every decision says it too."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import ConfigError, KeyReleaseDeniedError, UnavailableError
from dstack.measurement.acpi import derive_acpi_blobs
from dstack.measurement.document import reference_boot_events
from dstack.measurement.event_log import Event
from dstack.measurement.vm_config import VmConfig
from dstack.simulator.os_image import SimulatedImage
from dstack.vmm.acpi_sources import capture
from dstack.vmm.qtest import DEFAULT_QEMU, own_qemu_digests
from kms.acpi_tables import AcpiTables
from kms.authorization import SelfAuthorization
from kms.config import Settings, parse_settings
from kms.evidence import EvidenceVerifier
from kms.image_cache import IMAGES, ImageCache
from kms.release import KeyRelease
from kms.roots import Roots
from kms.verifiers import make_image_cache, opened_verifier
from tests.image_parts import acpi_tables
from tests.unit.kms.conftest import (
    APP_ID,
    COMPOSE_HASH,
    IMAGE,
    INSTANCE_ID,
    KMS_COMPOSE_HASH,
    AppId,
    Machine,
    World,
    app_machine,
)
from tests.unit.kms.test_image_measurements import BOUND_TO
from tests.unit.kms.test_image_measurements import evidence as legacy_evidence
from tests.unit.kms.test_release import ROOT, certificate_of

TABLES = derive_acpi_blobs(acpi_tables())
UNSET = (
    r"Failed to verify os image hash: ACPI tables: only the machine's own log names their digests, "
    r"and core\.image\.acpi_tables is unset$"
)


class WithTables(SimulatedImage):
    """The image of these tests, on a host that gives its guests `TABLES`."""

    def boot_log(self, config: VmConfig) -> tuple[Event, ...]:
        """As any other, with the digests of these tables."""
        return reference_boot_events(self.document, config, TABLES.digests)


SEEN = WithTables(IMAGE.files)


def settings_of(folder: Path, source: str) -> Settings:
    """Those of a KMS that takes ACPI tables from *source*."""
    return parse_settings(
        f"""
        [core]
        cert_dir = "{folder}"
        [core.image]
        cache_dir = "{folder}"
        acpi_tables = "{source}"
        [core.attestation.urls]
        collateral_dir = "{folder}"
        [core.auth_api.chain]
        rpc_url = "https://rpc.example"
        kms_contract = "0x{"c0" * 20}"
        """
    )


def verifier_of(world: World, folder: Path, source: str) -> EvidenceVerifier:
    """What the KMS's own start makes of the setting, with the world's roots, collateral and clock."""
    core = settings_of(folder, source).core
    with opened_verifier(core, make_image_cache(core.image)) as made:
        return replace(world.verifier, image=made.image, acpi=made.acpi)


def release_of(world: World, verifier: EvidenceVerifier, image: SimulatedImage) -> KeyRelease:
    """The release of a KMS that the chain permits, on a machine with *image*."""
    machine = Machine(KMS_COMPOSE_HASH, AppId(KMS_COMPOSE_HASH[:20]), image=image)
    seen = SelfAuthorization(machine, world.verifier, world.chain).appraisal()
    world.chain.kms_machines.add(seen.mr_aggregated)
    return KeyRelease(Roots(ROOT), SelfAuthorization(machine, verifier, world.chain), verifier, world.chain)


def source_of(folder: Path, kind: str) -> str:
    """A source that has seen `TABLES`: a store of captured ones, or a program that prints them."""
    if kind == "captured":
        capture(IMAGE.vm_config(), TABLES, folder / "store", note="")
        return f"captured:{folder / 'store'}"
    IMAGE.save(folder / IMAGES / IMAGE.os_image_hash.hex())
    (folder / "blob").write_bytes(TABLES.tables)
    program = folder / "helper"
    program.write_text(f"#!/bin/sh\ncat {folder}/blob\n")
    program.chmod(0o700)
    return f"helper:{program}"


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str | None, bool | None]]:
    """Of each decision about an app: what came of it, and what its line says of ACPI tables."""
    found = [json.loads(message) for message in caplog.messages]
    return [
        (each["decision"], each.get("acpi_source"), each.get("acpi_tables_verified"))
        for each in found
        if each["subject"] == "app"
    ]


def recording(caplog: pytest.LogCaptureFixture) -> AbstractContextManager[None]:
    """While this lasts the log of decisions is kept."""
    return caplog.at_level("INFO", logger="kms.decisions")


def test_unset_nobody_gets_anything(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A machine with a measurement document, one without, and this KMS itself: of none is it known what it runs."""
    verifier = verifier_of(world, tmp_path, "")
    release = release_of(world, verifier, IMAGE)
    trusting = KeyRelease(Roots(ROOT), world.own, verifier, world.chain)
    world.chain.kms_machines.add(world.own.appraisal().mr_aggregated)

    with recording(caplog):
        with pytest.raises(UnavailableError, match=f"^could not ask: {UNSET}"):
            release.app_keys(certificate_of(app_machine()), "", "request")
        with pytest.raises(UnavailableError, match=f"^could not ask: {UNSET}"):
            trusting.app_keys(certificate_of(app_machine()), "", "request")
        with pytest.raises(UnavailableError, match=f"^{UNSET}"):
            verifier.appraise(legacy_evidence(), bound_to=BOUND_TO)
    assert lines(caplog) == [("unavailable", None, None)]


def test_from_log_is_said_in_every_decision(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the setting says that the machine's own log is enough, line and entry say that nothing was verified."""
    release = release_of(world, verifier_of(world, tmp_path, "from-log"), IMAGE)

    with recording(caplog):
        release.app_keys(certificate_of(app_machine()), "", "request")
    assert lines(caplog) == [("granted", "from-log", False)]


@pytest.mark.parametrize("kind", ["captured", "helper"])
def test_a_source_that_has_seen_the_tables_is_named(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A machine whose host gave it these tables gets its keys, and the decision says who knew them."""
    release = release_of(world, verifier_of(world, tmp_path, source_of(tmp_path, kind)), SEEN)
    machine = Machine(COMPOSE_HASH, APP_ID, INSTANCE_ID, image=SEEN)

    with recording(caplog):
        release.app_keys(certificate_of(machine), "", "request")
    assert lines(caplog) == [("granted", kind, True)]


class OnOurQemu(SimulatedImage):
    """The image of these tests, on a host that runs the QEMU of this computer."""

    def boot_log(self, config: VmConfig) -> tuple[Event, ...]:
        """As any other, with the digests of what that QEMU hands out."""
        return reference_boot_events(self.document, config, own_qemu_digests(config).by_name)


@pytest.mark.skipif(shutil.which(DEFAULT_QEMU) is None, reason="qemu-system-x86 is not installed")
def test_this_computers_qemu_is_a_source(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A host that runs the same one gives its guests the tables that we get from it; any other host is refused."""
    image = OnOurQemu(IMAGE.files)
    release = release_of(world, verifier_of(world, tmp_path, "own-qemu"), image)

    with recording(caplog):
        release.app_keys(certificate_of(app_machine(image=image)), "", "request")
    assert lines(caplog) == [("granted", "own-qemu", True)]
    with pytest.raises(KeyReleaseDeniedError, match=r"Failed to verify os image hash: RTMR0: want "):
        release.app_keys(certificate_of(app_machine()), "", "request")


@pytest.mark.parametrize("kind", ["captured", "helper"])
def test_other_tables_get_nothing(world: World, tmp_path: Path, kind: str) -> None:
    """A host that gives its guest tables of its own choice, with every digest right in the log, is refused."""
    release = release_of(world, verifier_of(world, tmp_path, source_of(tmp_path, kind)), SEEN)

    with pytest.raises(
        KeyReleaseDeniedError, match=r"^App not allowed: Failed to verify os image hash: RTMR0: want "
    ) as refused:
        release.app_keys(certificate_of(app_machine()), "", "request")
    assert refused.value.rule == "APPRAISAL"


def test_a_machine_of_another_shape_is_not_known(world: World, tmp_path: Path) -> None:
    """The store has tables for two CPUs; of four it says nothing, and the log is not asked instead."""
    verifier = verifier_of(world, tmp_path, source_of(tmp_path, "captured"))
    release = release_of(world, verifier, SEEN)
    other = json.dumps({**json.loads(app_machine(image=SEEN).platform.config), "cpu_count": 4})

    with pytest.raises(UnavailableError, match=r"ACPI tables: .*/store has none for this shape of machine"):
        release.app_keys(certificate_of(app_machine(image=SEEN)), other, "request")


def test_a_known_shape_waits_for_nobody(tmp_path: Path) -> None:
    """While a source works on a shape that a stranger made up, machines of a shape that is known are answered."""
    source = source_of(tmp_path, "helper")
    block, begun = tmp_path / "block", tmp_path / "begun"
    waits = f"while [ -e {block} ]; do touch {begun}; sleep 0.05; done"
    (tmp_path / "helper").write_text(f"#!/bin/sh\n{waits}\ncat {tmp_path}/blob\n")
    tables = AcpiTables(source, ImageCache(tmp_path, None))
    config = IMAGE.vm_config()
    known = tables.digests(config)
    block.touch()
    stranger = threading.Thread(target=tables.digests, args=(replace(config, cpu_count=4),))
    stranger.start()
    try:
        while not begun.exists():
            assert stranger.is_alive()
            time.sleep(0.01)
        answered, still_asking = tables.digests(config), stranger.is_alive()
    finally:
        block.unlink()
        stranger.join()

    assert (answered, still_asking) == (known, True)


def test_a_helper_is_told_of_no_changed_image(world: World, tmp_path: Path) -> None:
    """Who can write to the cache does not choose what a helper is given."""
    verifier = verifier_of(world, tmp_path, source_of(tmp_path, "helper"))
    release = release_of(world, verifier, SEEN)
    (tmp_path / IMAGES / IMAGE.os_image_hash.hex() / "bzImage").write_bytes(b"changed")

    with pytest.raises(UnavailableError, match=r"ACPI tables: helper: OS image .*: bzImage is missing or not what"):
        release.app_keys(certificate_of(app_machine(image=SEEN)), "", "request")


@pytest.mark.parametrize(
    ("setting", "made", "notice"),
    [
        ("", "refuse_unseen_tables", "core.image.acpi_tables is unset: no machine gets anything, this one included"),
        (
            "from-log",
            None,
            "ACPI tables are not verified: machines get keys on what only their own log says (from-log)",
        ),
        ("captured:/store", "digests", None),
        ("own-qemu", "digests", None),
    ],
)
def test_the_setting_names_the_source(tmp_path: Path, setting: str, made: str | None, notice: str | None) -> None:
    """Unset nobody is believed; both that and `from-log` are announced at the start, and nothing else is."""
    settings = settings_of(tmp_path, setting)

    with opened_verifier(settings.core, make_image_cache(settings.core.image)) as verifier:
        acpi: Callable[..., object] | None = verifier.acpi
    assert getattr(acpi, "__name__", None) == made
    assert [each for each in settings.notices() if "ACPI" in each or "acpi" in each] == ([notice] if notice else [])


def test_a_setting_that_is_no_source_is_refused() -> None:
    """The text says which there are."""
    with pytest.raises(
        ConfigError, match=r"core\.image\.acpi_tables: .*want own-qemu, own-qemu:PROGRAM, captured:PATH"
    ):
        parse_settings('core.image.acpi_tables = "everything"')
