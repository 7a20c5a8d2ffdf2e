"""Receipts that fill up: said in time, refused at the limit, and moved away while the node runs."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import KeystoreError
from replicator.node import Replicator
from replicator.receipts import ReceiptFolder
from tests.worlds import SECRET, SETTINGS, Handover, Site, make_handover, receive

DOCS = Path(__file__).parents[3] / "docs" / "settings-replicator.md"
DAY = 86400


@pytest.fixture
def world(tmp_path: Path, site: Site) -> Handover:
    """An old and a new node."""
    return make_handover(tmp_path, site)


def with_limit(world: Handover, limit: int) -> Replicator:
    """The old node, started with that limit."""
    receipts = ReceiptFolder(world.folder / "old" / "receipts", limit)
    receipts.prepare()
    return Replicator(replace(world.old.around, receipts=receipts), SETTINGS)


def names(folder: Path) -> list[str]:
    """Of the files directly in *folder*, by what they are receipts of."""
    return sorted(path.name.partition(".")[2] for path in folder.iterdir() if path.is_file())


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the log warns of about receipts."""
    with caplog.at_level(logging.WARNING, "replicator.receipts"):
        yield caplog


def test_the_log_warns_from_half_of_the_limit_on(world: Handover, told: pytest.LogCaptureFixture) -> None:
    """Each further receipt says so, and so does each start; what was before is not told."""
    old = with_limit(world, 5)
    for _ in range(3):
        old.onboard(world.request())
    with_limit(world, 5)

    assert [record.getMessage() for record in told.records if record.name == "replicator.receipts"] == [
        f"receipts: {count} are kept; with 5 nothing more is handed on: move some away" for count in (3, 4, 4)
    ]
    assert (old.status()["receipts"], old.status()["max_receipts"]) == (4, 5)


def test_at_the_limit_nothing_is_handed_on_and_nothing_deleted(world: Handover) -> None:
    """The genesis and one handover are kept: the next request is refused."""
    old = with_limit(world, 2)
    old.onboard(world.request())

    with pytest.raises(KeystoreError, match="receipts: want at most 2, got as many; move some away"):
        old.onboard(world.request())

    assert names(world.folder / "old" / "receipts") == ["genesis.json", "sent.json"]


def test_room_is_made_as_the_settings_page_says(world: Handover) -> None:
    """What is older than two days goes to the archive while the node runs; the genesis and what is younger stay."""
    folder, archive = world.folder / "old" / "receipts", world.folder / "old" / "receipts" / "archive"
    old = with_limit(world, 3)
    for age in (3 * DAY, 1.9 * DAY):
        sent = old.onboard(world.request()).receipt.hash().hex()
        os.utime(folder / f"{sent}.sent.json", (time.time() - age,) * 2)
    (genesis,) = folder.glob("*.genesis.json")
    os.utime(genesis, (time.time() - 100 * DAY,) * 2)
    request = world.request()
    with pytest.raises(KeystoreError, match="want at most 3"):
        old.onboard(request)

    archive.mkdir()
    (commands,) = re.findall(r"```sh\n(find receipts .*?)```", DOCS.read_text(), re.DOTALL)
    script = commands.replace("find receipts ", f"find {folder} ").replace(" archive ", f" {archive} ")
    subprocess.run(["bash", "-euc", script], check=True, timeout=60)

    assert (names(folder), names(archive)) == (["genesis.json", "sent.json"], ["sent.json"])
    receive(world.new, old.onboard(request))
    assert world.new_secure_file.read_bytes() == SECRET
    page = old.around.receipts.page(0, with_evidence=False)
    assert [each["role"] for each in page["receipts"]] == ["genesis", "sent", "sent"]
