"""The files a host shares with its guest (guest.md 2). The host is not trusted: sizes are bounded, links refused."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from dstack.errors import ConfigError
from dstack.measurement.compose import MAX_APP_COMPOSE, AppCompose, parse_app_compose
from dstack.measurement.identities import INSTANCE_ID_SEED_SIZE
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import AppId, InstanceId

APP_COMPOSE = "app-compose.json"
SYS_CONFIG = ".sys-config.json"
INSTANCE_INFO = ".instance_info"
ENCRYPTED_ENV = ".encrypted-env"

MAX_KMS_URLS = 16
_LIMITS = {APP_COMPOSE: MAX_APP_COMPOSE, SYS_CONFIG: 32 << 10, INSTANCE_INFO: 10 << 10, ENCRYPTED_ENV: 256 << 10}
_OPTIONAL = (INSTANCE_INFO, ENCRYPTED_ENV)


@dataclass(frozen=True, slots=True)
class SysConfig:
    """What the host says about the surroundings; transport only.

    Attributes:
        kms_urls: Where KMSs may be found, without `/prpc`.
        vm_config: The shape of the VM as JSON text; believed only as far as measurements bear it out.
    """

    kms_urls: tuple[str, ...]
    vm_config: str


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """What stays with a disk from boot to boot.

    Attributes:
        instance_id_seed: 20 bytes, drawn at the first boot; None before it.
        app_id: Pinned by the deployer; None takes it from the compose hash.
    """

    instance_id_seed: bytes | None = None
    app_id: AppId | None = None


@dataclass(frozen=True, slots=True)
class HostShared:
    """The shared files, parsed.

    Attributes:
        encrypted_env: The app's environment, encrypted to its env key; None for none.
    """

    app_compose: AppCompose
    sys_config: SysConfig
    instance_info: InstanceInfo
    encrypted_env: bytes | None = None


def copy_host_shared(source: Path, target: Path) -> None:
    """Copy the files this guest reads, so that the host cannot change them between two reads.

    Raises:
        ConfigError: A required file is missing, a file is too large or not a regular file, or copying failed.
    """
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _LIMITS:
            (target / name).unlink(missing_ok=True)
            if name not in _OPTIONAL or os.path.lexists(source / name):
                (target / name).write_bytes(_read(source, name))
    except OSError as exc:
        raise ConfigError(f"host-shared: cannot be copied: {exc.strerror}") from exc


def load_host_shared(folder: Path) -> HostShared:
    """Read the copied files.

    Raises:
        ConfigError: A file is missing, too large or not a regular file; or one but the app-compose is malformed.
        ComposeMalformedError: The app-compose is.
    """
    return HostShared(
        app_compose=parse_app_compose(_read(folder, APP_COMPOSE)),
        sys_config=parse_sys_config(_read(folder, SYS_CONFIG)),
        instance_info=load_instance_info(folder),
        encrypted_env=_read(folder, ENCRYPTED_ENV) if os.path.lexists(folder / ENCRYPTED_ENV) else None,
    )


def load_instance_info(folder: Path) -> InstanceInfo:
    """Read the instance info in *folder*; empty where there is no such file.

    Raises:
        ConfigError: It is too large, not a regular file, or malformed.
    """
    if not os.path.lexists(folder / INSTANCE_INFO):
        return InstanceInfo()
    return parse_instance_info(_read(folder, INSTANCE_INFO))


def parse_sys_config(raw: bytes) -> SysConfig:
    """Read a `.sys-config.json`; members this project has no use for are skipped.

    Raises:
        ConfigError: It is malformed, or names too many KMSs.
    """
    members = _object(raw, SYS_CONFIG)
    kms_urls = members.texts("kms_urls")
    if len(kms_urls) > MAX_KMS_URLS:
        raise ConfigError(f"{SYS_CONFIG}: kms_urls: want at most {MAX_KMS_URLS}, got {len(kms_urls)}")
    return SysConfig(kms_urls, members.text("vm_config"))


def parse_instance_info(raw: bytes) -> InstanceInfo:
    """Read an `.instance_info`; empty strings count as absent.

    Raises:
        ConfigError: It is malformed, or the seed or the app id has the wrong length.
    """
    members = _object(raw, INSTANCE_INFO)
    seed = members.hexadecimal("instance_id_seed", "")
    if seed and len(seed) != INSTANCE_ID_SEED_SIZE:
        raise ConfigError(f"{INSTANCE_INFO}: instance_id_seed: want {INSTANCE_ID_SEED_SIZE} bytes, got {len(seed)}")
    pinned = members.hexadecimal("app_id", "")
    if pinned and len(pinned) != AppId.SIZE:
        raise ConfigError(f"Invalid app id length: expected {AppId.SIZE} bytes, got {len(pinned)}")
    return InstanceInfo(seed or None, AppId(pinned) if pinned else None)


def serialise_instance_info(seed: bytes | None, instance_id: InstanceId | None, app_id: AppId) -> str:
    """Write the info that the guest reports to the host after a boot."""
    return json.dumps(
        {
            "instance_id_seed": (seed or b"").hex(),
            "instance_id": (instance_id or b"").hex(),
            "app_id": app_id.hex(),
        }
    )


def _object(raw: bytes, name: str) -> Members:
    value = parse_json(raw, what=name, limit=_LIMITS[name], error=ConfigError)
    return Members.of(value, what=name, error=ConfigError)


def _read(folder: Path, name: str) -> bytes:
    """Read one file of *folder* itself: a link there could point at a file of the guest's own."""
    limit = _LIMITS[name]
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            raw = stream.read(limit + 1)
    except FileNotFoundError as exc:
        raise ConfigError(f"Source file {name} does not exist") from exc
    except OSError as exc:
        raise ConfigError(f"Source file {name}: want a regular file: {exc.strerror}") from exc
    if len(raw) > limit:
        raise ConfigError(f"Source file {name} is too large, max size is {limit} bytes")
    return raw
