"""Attack: a host gives the allowed machine ACPI tables with code of its own. Its log names their digests truthfully."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dstack.errors import ImageRefusedError, ImageUnavailableError
from dstack.measurement.acpi import AcpiBlobs, derive_acpi_blobs
from dstack.measurement.document import reference_boot_events
from dstack.measurement.event_log import Event
from dstack.measurement.vm_config import VmConfig
from dstack.simulator.os_image import SimulatedImage
from dstack.vmm.acpi_sources import capture
from replicator.acpi_tables import tables_from
from tests.handover_attacks import nothing_left, request_quoted_by
from tests.image_parts import acpi_tables
from tests.worlds import SECRET, Site, make_handover, receive

HONEST = derive_acpi_blobs(acpi_tables())
HOSTILE = derive_acpi_blobs(acpi_tables((b"APIC", b"WAET")))


@dataclass(frozen=True)
class OnHost(SimulatedImage):
    """The image of these tests, on a host that gives its guests certain tables."""

    tables: AcpiBlobs

    def boot_log(self, config: VmConfig) -> tuple[Event, ...]:
        """As any other, with the digests of these tables."""
        return reference_boot_events(self.document, config, self.tables.digests)


def on_host(site: Site, tables: AcpiBlobs) -> Site:
    """The same platform and image, with these tables."""
    return replace(site, image=OnHost(site.image.files, tables))


def trusting(site: Site, store: Path) -> Site:
    """Honest hosts, and nodes that take ACPI tables from *store*."""
    return replace(on_host(site, HONEST), acpi=tables_from(f"captured:{store}"))


@pytest.fixture
def store(tmp_path: Path, site: Site) -> Path:
    """What the owner captured: the honest tables of the shape that both machines have."""
    capture(site.image.vm_config(), HONEST, tmp_path / "store", note="")
    return tmp_path / "store"


def test_captured_tables_let_an_honest_host_through(tmp_path: Path, site: Site, store: Path) -> None:
    """Both machines have the tables that were captured: the secure file arrives."""
    world = make_handover(tmp_path, trusting(site, store))

    receive(world.new, world.old.onboard(world.request()))

    assert world.new.around.secure_file.path.read_bytes() == SECRET


def test_other_tables_are_noticed_whatever_the_log_says(tmp_path: Path, site: Site, store: Path) -> None:
    """RTMR0 is not what the captured tables make of it; by the machine's own log it would have passed."""
    for seeing, folder in ((trusting(site, store), "seeing"), (on_host(site, HONEST), "believing")):
        world = make_handover(tmp_path / folder, seeing)
        compose = world.new_machine.booted.app_compose.raw
        hostile = on_host(site, HOSTILE).machine(tmp_path / f"{folder}-hostile", compose)
        request = request_quoted_by(world, hostile)
        if folder == "believing":
            assert world.old.onboard(request).receipt.terms.size == len(SECRET)
            continue
        with pytest.raises(ImageRefusedError, match=r"^RTMR0: want [0-9a-f]{96}, the quote has [0-9a-f]{96}$"):
            world.old.onboard(request)
        assert nothing_left(world)


@pytest.mark.parametrize("state", ["another shape", "damaged", "missing"])
def test_without_tables_of_its_shape_nobody_is_judged(tmp_path: Path, site: Site, store: Path, state: str) -> None:
    """What the store does not say is neither yes nor no."""
    world = make_handover(tmp_path, trusting(site, store))
    request = world.request()
    index = next(store.glob("*.json"))
    if state == "another shape":
        index.unlink()
        capture(replace(site.image.vm_config(), cpu_count=7), HONEST, store, note="")
    elif state == "damaged":
        index.write_text("{")
    else:
        index.unlink()

    with pytest.raises(ImageUnavailableError, match=r"^ACPI tables: "):
        world.old.onboard(request)

    assert nothing_left(world)
