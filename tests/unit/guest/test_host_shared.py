"""What the host shares is bounded, and never a link to somewhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dstack.errors import ConfigError
from dstack.guest.host_shared import (
    InstanceInfo,
    SysConfig,
    copy_host_shared,
    load_host_shared,
    parse_instance_info,
    parse_sys_config,
    serialise_instance_info,
)
from dstack.values import AppId, InstanceId
from tests.worlds import app_compose

SEED, APP, INSTANCE = b"\x01" * 20, AppId(b"\x02" * 20), InstanceId(b"\x03" * 20)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as a host prepares it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "app-compose.json").write_bytes(app_compose())
    (folder / ".sys-config.json").write_text('{"kms_urls": ["https://kms"], "vm_config": "{}", "pccs_url": ""}')
    return folder


def test_copied_files_are_those_that_were_shared(shared: Path, tmp_path: Path) -> None:
    """The copy holds the shared files, byte for byte; a missing instance info is an empty one."""
    copy_host_shared(shared, tmp_path / "copy")

    read = load_host_shared(tmp_path / "copy")

    assert read.app_compose.raw == app_compose()
    assert read.sys_config == SysConfig(("https://kms",), "{}")
    assert read.instance_info == InstanceInfo()


def test_copy_forgets_an_instance_info_that_is_gone(shared: Path, tmp_path: Path) -> None:
    """What an earlier copy held and the host no longer shares does not stay."""
    (shared / ".instance_info").write_text(serialise_instance_info(SEED, INSTANCE, APP))
    copy_host_shared(shared, tmp_path / "copy")
    before = load_host_shared(tmp_path / "copy").instance_info
    (shared / ".instance_info").unlink()

    copy_host_shared(shared, tmp_path / "copy")

    assert before == InstanceInfo(SEED, APP)
    assert load_host_shared(tmp_path / "copy").instance_info == InstanceInfo()


@pytest.mark.parametrize("name", ["app-compose.json", ".sys-config.json", ".instance_info", ".encrypted-env"])
def test_links_are_refused(shared: Path, tmp_path: Path, name: str) -> None:
    """A host cannot make the guest read a file of its own through a link."""
    (tmp_path / "secret").write_text("{}")
    (shared / name).unlink(missing_ok=True)
    (shared / name).symlink_to(tmp_path / "secret")

    with pytest.raises(ConfigError, match=f"{name}: want a regular file"):
        copy_host_shared(shared, tmp_path / "copy")


def test_pipes_do_not_hang_a_boot(shared: Path, tmp_path: Path) -> None:
    """A pipe that nobody writes is read as an empty file, and refused for its content."""
    (shared / ".sys-config.json").unlink()
    os.mkfifo(shared / ".sys-config.json")
    copy_host_shared(shared, tmp_path / "copy")

    with pytest.raises(ConfigError, match=r"\.sys-config\.json: not JSON"):
        load_host_shared(tmp_path / "copy")


def test_missing_file_is_named(shared: Path, tmp_path: Path) -> None:
    """A required file that is not shared is named as upstream names it."""
    (shared / ".sys-config.json").unlink()

    with pytest.raises(ConfigError, match=r"Source file \.sys-config\.json does not exist"):
        copy_host_shared(shared, tmp_path / "copy")


def test_large_file_is_refused(shared: Path, tmp_path: Path) -> None:
    """A file over its limit is refused, with the limit."""
    (shared / ".sys-config.json").write_bytes(b" " * (32 * 1024 + 1))

    with pytest.raises(ConfigError, match="too large, max size is 32768 bytes"):
        copy_host_shared(shared, tmp_path / "copy")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({}, "'vm_config' is missing"),
        ({"vm_config": {}}, "vm_config: want a string"),
        ({"vm_config": "{}", "kms_urls": "https://kms"}, "kms_urls: want an array"),
        ({"vm_config": "{}", "kms_urls": ["u"] * 17}, "kms_urls: want at most 16, got 17"),
    ],
)
def test_malformed_sys_config_is_refused(members: dict[str, Any], match: str) -> None:
    """A sys-config without a VM config, or with members of other types, is refused."""
    with pytest.raises(ConfigError, match=match):
        parse_sys_config(json.dumps(members).encode())


def test_instance_info_survives_the_disk() -> None:
    """What a boot reports is what the next boot reads."""
    assert parse_instance_info(serialise_instance_info(SEED, INSTANCE, APP).encode()) == InstanceInfo(SEED, APP)
    assert parse_instance_info(serialise_instance_info(None, None, APP).encode()) == InstanceInfo(None, APP)


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"app_id": "00" * 32}, "Invalid app id length: expected 20 bytes, got 32"),
        ({"instance_id_seed": "00"}, "instance_id_seed: want 20 bytes, got 1"),
        ({"app_id": 1}, "app_id: want a string"),
    ],
)
def test_malformed_instance_info_is_refused(members: dict[str, Any], match: str) -> None:
    """Ids of another length are refused, not cut or padded."""
    with pytest.raises(ConfigError, match=match):
        parse_instance_info(json.dumps(members).encode())
