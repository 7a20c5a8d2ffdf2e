"""The boot of a guest, in the order in which it is measured: sequence `0.6-pre` of guest.md 3.3.

(1) Measure the app, its id and the instance's. (2) Get keys, showing those measurements. (3) See that the provider is
the one the app pinned. (4) Measure who gave the keys, and where the data will lie. (5) Leave the keys for the app, and
its environment.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from dstack.errors import AppraisalError, ConfigError, UnavailableError
from dstack.guest.app_keys import KmsProvider, LocalProvider, ProvidedKeys, keys_of_seed, serialise_app_keys
from dstack.guest.host_shared import HostShared
from dstack.guest.local_keys import SEED_SIZE, SealedSeed
from dstack.guest.platform import Platform
from dstack.keys.environment import allowed_variables, parse_environment, serialise_env_file
from dstack.keys.sealing import decrypt_env
from dstack.measurement.compose import AppCompose, default_app_id
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.identities import INSTANCE_ID_SEED_SIZE, derive_instance_id, key_provider_payload
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, split_at_boot_mr_done
from dstack.transport.private_file import replace_private
from dstack.values import AppId, InstanceId

APP_KEYS = ".appkeys.json"
DECRYPTED_ENV, DECRYPTED_ENV_JSON = ".decrypted-env", ".decrypted-env.json"
DEFAULT_STORAGE_FS = "zfs"

_log = logging.getLogger(__name__)


class KmsCall(Protocol):
    """Asks one KMS for the keys of this machine."""

    def __call__(self, kms_url: str, platform: Platform, *, at: datetime) -> ProvidedKeys:
        """As `kms_client.request_app_keys`."""
        ...


class SeedCall(Protocol):
    """Asks the local key provider for the seed of this machine."""

    def __call__(self, platform: Platform, *, at: datetime, random: Callable[[int], bytes]) -> SealedSeed:
        """As `local_keys.request_seed`."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a boot acts through.

    Attributes:
        platform: The machine; nothing has been extended into its RTMR3 yet.
        request_keys: Asks one KMS.
        clock: Now, aware.
        random: So many bytes nobody can predict.
        request_seed: Asks the local key provider; None where there is none.
    """

    platform: Platform
    request_keys: KmsCall
    clock: Callable[[], datetime]
    random: Callable[[int], bytes]
    request_seed: SeedCall | None = None


@dataclass(frozen=True, slots=True)
class Booted:
    """A guest that is up.

    Attributes:
        key_provider_info: Payload of the `key-provider` event.
        instance_id_seed: To be kept for the next boot; None for an app without instance ids.
    """

    app_compose: AppCompose
    app_id: AppId
    instance_id: InstanceId | None
    instance_id_seed: bytes | None
    key_provider_info: bytes
    provided: ProvidedKeys


def boot(shared: HostShared, around: Surroundings, *, work_dir: Path) -> Booted:
    """Boot.

    Args:
        shared: A private copy of what the host gave.
        around: What the boot acts through.
        work_dir: Where `.appkeys.json` and the environment are left, mode 0600.

    Raises:
        InputError: What the host gave cannot be used.
        KeyReleaseDeniedError: The KMS asked the chain, and the chain forbids it.
        AppraisalError: The KMS is not the one the app pinned.
        RefusedError: The KMS refuses otherwise.
        UnavailableError: No KMS answered.
    """
    compose = shared.app_compose
    if compose.requirements:
        raise ConfigError(f"requirements: this guest can keep none yet, the app has {', '.join(compose.requirements)}")
    inputs, seed = _inputs(shared, around.random)
    version = compose.event_log_version

    # (1)
    until_keys, _ = split_at_boot_mr_done(boot_events(OUR_SEQUENCE, inputs, version=version))
    _extend(around.platform, until_keys)

    # (2)
    provided = _keys(compose.key_provider, shared.sys_config.kms_urls, around)

    # (3)
    inputs = _with_provider(inputs, provided)
    if compose.key_provider_id and compose.key_provider_id != inputs.key_provider_id:
        raise AppraisalError(f"Unexpected key provider id: {inputs.key_provider_id.hex()}")

    # (4)
    _, after_keys = split_at_boot_mr_done(boot_events(OUR_SEQUENCE, inputs, version=version))
    _extend(around.platform, after_keys)

    # (5)
    _leave(work_dir / APP_KEYS, serialise_app_keys(provided))
    environment = _environment(shared, provided)
    _leave(work_dir / DECRYPTED_ENV, serialise_env_file(environment).encode())
    _leave(work_dir / DECRYPTED_ENV_JSON, json.dumps(environment, ensure_ascii=False).encode())
    return Booted(
        app_compose=compose,
        app_id=inputs.app_id,
        instance_id=inputs.instance_id,
        instance_id_seed=seed,
        key_provider_info=key_provider_payload(inputs.key_provider, inputs.key_provider_id),
        provided=provided,
    )


def _inputs(shared: HostShared, random: Callable[[int], bytes]) -> tuple[BootInputs, bytes | None]:
    """What is known before there are keys, and the seed of the instance id.

    Without a key provider the disk is new at each boot, and so is the instance.
    """
    compose, info = shared.app_compose, shared.instance_info
    app_id = info.app_id or default_app_id(compose.compose_hash)
    seed = None
    if not compose.no_instance_id:
        kept = info.instance_id_seed if compose.key_provider != "none" else None
        seed = kept or random(INSTANCE_ID_SEED_SIZE)
    inputs = BootInputs(
        app_id=app_id,
        compose_hash=compose.compose_hash,
        instance_id=derive_instance_id(seed, app_id) if seed else None,
        storage_fs=compose.storage_fs or DEFAULT_STORAGE_FS,
    )
    return inputs, seed


def _keys(key_provider: str, kms_urls: Sequence[str], around: Surroundings) -> ProvidedKeys:
    if key_provider == "none":
        return keys_of_seed(around.random(SEED_SIZE), around.platform, at=around.clock())
    if key_provider == "kms":
        return _keys_of_first_kms(kms_urls, around)
    if key_provider == "local":
        return _keys_of_local_provider(around)
    raise ConfigError(f"key provider: want kms, local or none, got {key_provider}, which is not supported yet")


def _keys_of_local_provider(around: Surroundings) -> ProvidedKeys:
    if around.request_seed is None:
        raise ConfigError("key provider: the app wants a local one, and this host offers none")
    at = around.clock()
    sealed = around.request_seed(around.platform, at=at, random=around.random)
    return keys_of_seed(sealed.seed, around.platform, at=at, mr_enclave=sealed.provider_id)


def _keys_of_first_kms(kms_urls: Sequence[str], around: Surroundings) -> ProvidedKeys:
    """Ask one KMS after the other until one answers. A refusal is an answer; the first silence is what is reported."""
    silence: UnavailableError | None = None
    for url in kms_urls:
        try:
            return around.request_keys(url, around.platform, at=around.clock())
        except UnavailableError as exc:
            _log.warning("%s", exc)
            silence = silence or exc
    raise silence or ConfigError("No KMS URLs are set")


def _with_provider(inputs: BootInputs, provided: ProvidedKeys) -> BootInputs:
    provider = provided.provider
    if isinstance(provider, LocalProvider):
        return replace(inputs, key_provider="local", key_provider_id=provider.mr_enclave)
    if not isinstance(provider, KmsProvider):
        return inputs
    return replace(inputs, key_provider="kms", key_provider_id=provider.root_spki, os_image_hash=provider.os_image_hash)


def _extend(platform: Platform, events: Sequence[RuntimeEvent]) -> None:
    for event in events:
        platform.extend(event)


def _environment(shared: HostShared, provided: ProvidedKeys) -> dict[str, str]:
    """What the deployer encrypted to the app; whatever the app does not expect is left out.

    Anybody can encrypt to an app, and the host chooses which blob it hands over.
    """
    if shared.encrypted_env is None:
        return {}
    key = provided.keys.env_crypt_key
    if not key:
        raise ConfigError("encrypted environment: want a KMS, whose key it is encrypted to, got an app without one")
    variables = parse_environment(decrypt_env(key, shared.encrypted_env))
    environment = allowed_variables(variables, shared.app_compose.allowed_envs)
    for name in sorted({each.key for each in variables} - environment.keys()):
        _log.warning("encrypted environment: %s is not in allowed_envs and is left out", name)
    return environment


def _leave(path: Path, content: bytes) -> None:
    try:
        replace_private(path, content)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}") from exc
