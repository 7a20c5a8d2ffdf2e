"""app-compose.json: what an app is, and the hash that the chain allows (guest.md 1).

The compose hash is over the bytes of the file: one space more is another app. So whoever has bytes hashes these bytes,
and nobody parses and writes again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import rfc8785

from dstack.errors import ComposeMalformedError
from dstack.measurement.docker_compose import parse_docker_compose
from dstack.measurement.identities import KEY_PROVIDER_NAMES
from dstack.measurement.rtmr3 import MAX_INIT_SCRIPTS, STORAGE_FILE_SYSTEMS
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import AppId, ComposeHash, Digest32

MAX_APP_COMPOSE = 50 * 1024 * 1024
MAX_NAME = 256
RUNNERS = ("docker-compose", "bash", "nerdctl-compose")

_REQUIREMENTS = frozenset({"os_version", "platforms", "tdx_measure_acpi_tables", "launch_token_hash", "gpu_policy"})
_GPU_SWITCHES = ("attest_gpu", "allow_devtools", "allow_debug", "allow_insecure_boot")
_GPU_POLICY = frozenset({"rego", *_GPU_SWITCHES})
_ENV_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppCompose:
    """An app-compose.json, with the bytes it was read from.

    Attributes:
        raw: The file.
        manifest_version: 1, 2 or 3.
        docker_compose_file: Text of the docker-compose file; None for the runner `bash`.
        key_provider: `none`, `local`, `kms` or `tpm`, whichever way the file says it.
        key_provider_id: The only provider the app accepts; empty for any.
        storage_fs: None leaves it to the OS image.
        event_log_version: How runtime events are hashed, 1 or 2.
        requirements: Names of what the app demands of its machine; a guest refuses those it cannot keep.
        init_scripts: Run before the app, at most five.
        gpu_policy_hash: SHA-256 of the canonical GPU policy, that of `{}` without one.
    """

    raw: bytes
    manifest_version: int
    name: str
    runner: str
    docker_compose_file: str | None
    key_provider: str
    key_provider_id: bytes
    gateway_enabled: bool
    no_instance_id: bool
    storage_fs: str | None
    event_log_version: int
    public_logs: bool
    public_sysinfo: bool
    public_tcbinfo: bool
    allowed_envs: tuple[str, ...]
    secure_time: bool
    requirements: tuple[str, ...]
    init_scripts: tuple[str, ...]
    gpu_policy_hash: Digest32

    @property
    def compose_hash(self) -> ComposeHash:
        """SHA-256 of the file."""
        return compose_hash(self.raw)


def compose_hash(raw: bytes) -> ComposeHash:
    """Hash the bytes of an app-compose.json, exactly as they are."""
    return ComposeHash(sha256(raw).digest())


def default_app_id(compose_hash: ComposeHash) -> AppId:
    """Name an app that nobody named otherwise: the first 20 bytes of its compose hash."""
    return AppId(compose_hash[: AppId.SIZE])


def parse_app_compose(raw: bytes) -> AppCompose:
    """Read an app-compose.json.

    Members this project has no use for are skipped; they are part of the compose hash all the same.

    Args:
        raw: JSON in UTF-8, at most 50 MiB.

    Raises:
        ComposeMalformedError: Another form, or a member of the wrong type or value.
    """
    value = parse_json(raw, what="app-compose", limit=MAX_APP_COMPOSE, error=ComposeMalformedError)
    members = Members.of(value, what="app-compose", error=ComposeMalformedError)
    runner = _one_of(members, "runner", RUNNERS)
    manifest_version = _manifest_version(members)
    if runner == "nerdctl-compose" and manifest_version < 3:
        raise _malformed(f"runner nerdctl-compose: want manifest_version 3, got {manifest_version}")
    event_log_version = members.integer("event_log_version", 1, maximum=2)
    if event_log_version == 0:
        raise _malformed("event_log_version: want 1 or 2, got 0")
    requirements = _requirements(members, manifest_version)
    return AppCompose(
        raw=raw,
        manifest_version=manifest_version,
        name=members.text("name"),
        runner=runner,
        docker_compose_file=_docker_compose_file(members, runner),
        key_provider=_key_provider(members),
        key_provider_id=members.hexadecimal("key_provider_id", ""),
        gateway_enabled=_gateway_enabled(members),
        no_instance_id=members.flag("no_instance_id", False),
        storage_fs=_one_of(members, "storage_fs", STORAGE_FILE_SYSTEMS) if members.has("storage_fs") else None,
        event_log_version=event_log_version,
        public_logs=members.flag("public_logs", False),
        public_sysinfo=members.flag("public_sysinfo", False),
        public_tcbinfo=members.flag("public_tcbinfo", True),
        allowed_envs=members.texts("allowed_envs"),
        secure_time=members.flag("secure_time", True),
        requirements=tuple(sorted(requirements)),
        init_scripts=_init_scripts(members, manifest_version),
        gpu_policy_hash=_gpu_policy_hash(requirements),
    )


def app_compose_from_docker_compose(
    docker_compose: bytes,
    *,
    name: str,
    key_provider: str = "kms",
    key_provider_id: bytes = b"",
    gateway_enabled: bool = False,
    public_logs: bool = False,
    public_sysinfo: bool = False,
    allowed_envs: tuple[str, ...] = (),
    no_instance_id: bool = False,
    storage_fs: str | None = None,
    event_log_version: int = 1,
) -> bytes:
    """Write an app-compose.json around a docker-compose file, byte for byte as upstream's deploy tool does.

    Args:
        docker_compose: The file; it is carried verbatim.
        name: Shown to people, 1 to 256 characters.
        key_provider: `none`, `local` or `kms`.
        key_provider_id: The only provider the app accepts.
        gateway_enabled: Whether the gateway routes to it.
        public_logs: Whether anybody may read its logs.
        public_sysinfo: Whether anybody may read its machine's metrics.
        allowed_envs: Names that the encrypted environment may set.
        no_instance_id: Whether all its instances share one disk key; makes RTMR3 a constant.
        storage_fs: `zfs` or `ext4`; None leaves it to the OS image.
        event_log_version: 1 or 2.

    Raises:
        ComposeMalformedError: The docker-compose file cannot be used, or a value is not one of those above.
    """
    parse_docker_compose(docker_compose)
    if not 0 < len(name) <= MAX_NAME:
        raise _malformed(f"name: want 1 to {MAX_NAME} characters, got {len(name)}")
    if key_provider not in ("none", "local", "kms"):
        raise _malformed(f"key_provider: want one of none, local, kms, got {key_provider[:80]!r}")
    for variable in allowed_envs:
        if not _ENV_NAME.fullmatch(variable):
            raise _malformed(f"allowed_envs: want names of variables, got {variable[:80]!r}")
    members: dict[str, object] = {
        "manifest_version": 2,
        "name": name,
        "runner": "docker-compose",
        "docker_compose_file": docker_compose.decode(),
        "kms_enabled": key_provider == "kms",
        "gateway_enabled": gateway_enabled,
        "local_key_provider_enabled": key_provider == "local",
        "key_provider_id": key_provider_id.hex(),
        "public_logs": public_logs,
        "public_sysinfo": public_sysinfo,
        "allowed_envs": list(allowed_envs),
        "no_instance_id": no_instance_id,
        "secure_time": False,
    }
    if storage_fs is not None:
        members["storage_fs"] = storage_fs
    if event_log_version != 1:
        members["event_log_version"] = event_log_version
    try:
        raw = json.dumps(members, ensure_ascii=False, indent=4).encode()
    except UnicodeEncodeError as exc:
        raise _malformed("name: want Unicode text, got a lone surrogate") from exc
    # What is written is what can be read: the same rules decide.
    return parse_app_compose(raw).raw


def _malformed(message: str) -> ComposeMalformedError:
    return ComposeMalformedError(f"app-compose: {message}")


def _one_of(members: Members, name: str, allowed: tuple[str, ...]) -> str:
    value = members.text(name)
    if value not in allowed:
        raise _malformed(f"{name}: want one of {', '.join(allowed)}, got {value[:80]!r}")
    return value


def _manifest_version(members: Members) -> int:
    """Read 1 or 2, or "1", "2", "3": version 3 is a string so that older guests, which want a number, refuse it."""
    value = members.values.get("manifest_version")
    if type(value) is int and value in (1, 2):
        return value
    if isinstance(value, str) and value in ("1", "2", "3"):
        return int(value)
    raise _malformed('manifest_version: want 1, 2, "1", "2" or "3"')


def _docker_compose_file(members: Members, runner: str) -> str | None:
    if not members.has("docker_compose_file"):
        if runner != "bash":
            raise _malformed(f"runner {runner}: member 'docker_compose_file' is missing")
        return None
    return members.text("docker_compose_file")


def _key_provider(members: Members) -> str:
    """Choose as a guest does: `key_provider` wins over the two older flags, and KMS over local."""
    if members.has("key_provider"):
        return _one_of(members, "key_provider", tuple(KEY_PROVIDER_NAMES))
    if members.flag("kms_enabled", False) or "kms" in members.texts("features"):
        return "kms"
    return "local" if members.flag("local_key_provider_enabled", False) else "none"


def _gateway_enabled(members: Members) -> bool:
    """Any of the three ways that releases have spelled it turns the gateway on."""
    flags = members.flag("gateway_enabled", False), members.flag("tproxy_enabled", False)
    return any(flags) or "tproxy-net" in members.texts("features")


def _requirements(members: Members, manifest_version: int) -> Mapping[str, object]:
    if not members.has("requirements"):
        return {}
    if manifest_version < 3:
        raise _malformed(f"requirements: want manifest_version 3, got {manifest_version}")
    requirements = Members.of(members.values["requirements"], what="requirements", error=ComposeMalformedError)
    requirements.refuse_others(_REQUIREMENTS)
    return requirements.values


def _init_scripts(members: Members, manifest_version: int) -> tuple[str, ...]:
    if not members.has("init_script"):
        return ()
    one = isinstance(members.values["init_script"], str)
    scripts = (members.text("init_script"),) if one else members.texts("init_script")
    if len(scripts) > MAX_INIT_SCRIPTS:
        raise _malformed(f"init_script: want at most {MAX_INIT_SCRIPTS}, got {len(scripts)}")
    if len(scripts) > 1 and manifest_version < 3:
        raise _malformed(f"init_script: want manifest_version 3 for more than one, got {manifest_version}")
    return scripts


def _gpu_policy_hash(requirements: Mapping[str, object]) -> Digest32:
    """Digest the policy as it is written: a member that only says the default counts."""
    what = "requirements: gpu_policy"
    policy = Members.of(requirements.get("gpu_policy", {}), what=what, error=ComposeMalformedError)
    policy.refuse_others(_GPU_POLICY)
    written: dict[str, str | bool | None] = {name: policy.flag(name) for name in _GPU_SWITCHES if name in policy.values}
    if "rego" in policy.values:
        written["rego"] = policy.text("rego") if policy.has("rego") else None
    return Digest32(sha256(rfc8785.dumps(written)).digest())
