"""The boot of a guest: what is measured, in which order, and when it stops."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import ConfigError, KeyReleaseDeniedError, PeerUnavailableError, SealError
from dstack.guest.app_keys import KmsProvider, ProvidedKeys
from dstack.guest.boot import APP_KEYS, DECRYPTED_ENV, DECRYPTED_ENV_JSON, Booted, Surroundings, boot
from dstack.guest.host_shared import InstanceInfo
from dstack.guest.platform import Platform
from dstack.keys.derivation import AppKeys, app_keys_from_seed, env_public_key
from dstack.keys.environment import Variable, serialise_environment
from dstack.keys.sealing import encrypt_env
from dstack.measurement.compose import compose_hash, default_app_id
from dstack.measurement.event_log import runtime_events
from dstack.measurement.identities import derive_instance_id
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events
from dstack.simulator.platform import SimulatedPlatform
from dstack.values import OsImageHash
from tests.worlds import APP_ID, NOW, CountingRandom, Site, app_compose, no_kms

SEED = b"\x07" * 20


def start(
    site: Site, folder: Path, compose: bytes, info: InstanceInfo | None = None
) -> tuple[Booted, SimulatedPlatform]:
    """Boot *compose* where no KMS answers."""
    platform = site.platform(compose)
    around = Surroundings(platform, no_kms, lambda: NOW, CountingRandom())
    shared = site.shared(compose, info or InstanceInfo(), ("https://kms.example",))
    return boot(shared, around, work_dir=folder), platform


def test_events_are_those_an_auditor_predicts(site: Site, tmp_path: Path) -> None:
    """RTMR3 of a booted guest is what the boot sequence says for its facts."""
    compose = app_compose()

    booted, platform = start(site, tmp_path, compose, InstanceInfo(app_id=APP_ID))

    inputs = BootInputs(
        app_id=APP_ID, compose_hash=compose_hash(compose), instance_id=booted.instance_id, storage_fs="zfs"
    )
    assert runtime_events(platform.event_log()) == boot_events(OUR_SEQUENCE, inputs)


def test_app_id_comes_from_the_compose_hash_unless_pinned(site: Site, tmp_path: Path) -> None:
    """Without a pinned app id the first 20 bytes of the compose hash are measured."""
    compose = app_compose()

    booted, _ = start(site, tmp_path, compose)

    assert booted.app_id == default_app_id(compose_hash(compose))


def test_compose_may_choose_the_file_system(site: Site, tmp_path: Path) -> None:
    """The file system that the app names is the one that is measured."""
    compose = json.dumps(json.loads(app_compose()) | {"storage_fs": "ext4"}).encode()

    _, platform = start(site, tmp_path, compose)

    measured = {event.name: event.payload for event in runtime_events(platform.event_log())}
    assert measured["storage-fs"] == b"ext4"


def test_app_without_instance_ids_measures_an_empty_one(site: Site, tmp_path: Path) -> None:
    """With `no_instance_id` the event is there with an empty payload, and no seed is kept."""
    booted, platform = start(site, tmp_path, app_compose(no_instance_id=True))

    measured = {event.name: event.payload for event in runtime_events(platform.event_log())}
    assert measured["instance-id"] == b""
    assert (booted.instance_id, booted.instance_id_seed) == (None, None)


def test_without_a_key_provider_each_boot_is_a_new_instance(site: Site, tmp_path: Path) -> None:
    """A kept seed is not used where the disk cannot be used again, and the keys are drawn anew."""
    booted, _ = start(site, tmp_path, app_compose(), InstanceInfo(instance_id_seed=SEED))

    assert booted.instance_id_seed not in (None, SEED)
    assert booted.instance_id != derive_instance_id(SEED, booted.app_id)


def test_drawn_keys_follow_from_the_random_seed(site: Site, tmp_path: Path) -> None:
    """Without a key provider the keys are those of the drawn seed; nobody signs them, and the file says None."""
    seed = bytes(range(32))
    compose = app_compose(no_instance_id=True)
    around = Surroundings(site.platform(compose), no_kms, lambda: NOW, lambda size: seed[:size])

    booted = boot(site.shared(compose, InstanceInfo()), around, work_dir=tmp_path)

    assert booted.provided.keys == app_keys_from_seed(seed)
    kept = json.loads((tmp_path / APP_KEYS).read_text())
    assert (kept["k256_key"], kept["env_crypt_key"], kept["k256_signature"]) == (
        booted.provided.keys.k256_key.hex(),
        "",
        "",
    )
    assert list(kept["key_provider"]) == ["None"]


def refused(kms_url: str, platform: Platform, *, at: object) -> ProvidedKeys:
    """A KMS that was told no by the chain."""
    raise KeyReleaseDeniedError("COMPOSE_HASH", "Compose hash not allowed", 7)


class Recorder:
    """Which KMSs were asked; each answers by one rule."""

    def __init__(self, answer: Callable[..., ProvidedKeys]) -> None:
        self.asked: list[str] = []
        self._answer = answer

    def __call__(self, kms_url: str, platform: Platform, *, at: object) -> ProvidedKeys:
        self.asked.append(kms_url)
        return self._answer(kms_url, platform, at=at)


def start_with(site: Site, folder: Path, recorder: Recorder, urls: tuple[str, ...]) -> Booted:
    """Boot an app that needs a KMS, with *urls* to ask."""
    compose = app_compose(key_provider="kms")
    around = Surroundings(site.platform(compose), recorder, lambda: NOW, CountingRandom())
    return boot(site.shared(compose, InstanceInfo(instance_id_seed=SEED), urls), around, work_dir=folder)


def test_a_denial_ends_the_search(site: Site, tmp_path: Path) -> None:
    """A KMS that refuses is not asked around: its answer is the answer, and no keys are left."""
    recorder = Recorder(refused)

    with pytest.raises(KeyReleaseDeniedError, match="Compose hash not allowed"):
        start_with(site, tmp_path, recorder, ("https://a", "https://b"))

    assert recorder.asked == ["https://a"]
    assert not (tmp_path / APP_KEYS).exists()


def test_the_first_silence_is_reported(site: Site, tmp_path: Path) -> None:
    """Where no KMS answers all are asked, and the first error is told."""
    recorder = Recorder(no_kms)

    with pytest.raises(PeerUnavailableError, match="https://a: no answer"):
        start_with(site, tmp_path, recorder, ("https://a", "https://b"))

    assert recorder.asked == ["https://a", "https://b"]


def test_no_kms_urls_is_an_error_of_the_configuration(site: Site, tmp_path: Path) -> None:
    """An app that needs a KMS does not boot where the host names none."""
    with pytest.raises(ConfigError, match="No KMS URLs are set"):
        start_with(site, tmp_path, Recorder(no_kms), ())


def test_unsupported_key_provider_is_refused(site: Site, tmp_path: Path) -> None:
    """An app that wants a provider we lack does not boot on drawn keys instead."""
    compose = json.dumps(json.loads(app_compose()) | {"key_provider": "tpm"}).encode()

    with pytest.raises(ConfigError, match="want kms, local or none, got tpm"):
        start(site, tmp_path, compose)

    assert not (tmp_path / APP_KEYS).exists()


def test_requirements_that_nobody_enforces_are_refused(site: Site, tmp_path: Path) -> None:
    """An app that demands something of its machine does not boot where the demand would be ignored."""
    demanding = {"manifest_version": "3", "requirements": {"os_version": ">=0.6"}}
    compose = json.dumps(json.loads(app_compose()) | demanding).encode()

    with pytest.raises(ConfigError, match="requirements: this guest can keep none yet, the app has os_version"):
        start(site, tmp_path, compose)


def test_secrets_do_not_show(site: Site, tmp_path: Path) -> None:
    """The text form of a booted guest contains none of its keys."""
    booted, _ = start(site, tmp_path, app_compose())
    keys = booted.provided.keys

    shown = repr(replace(booted))

    for secret in (keys.disk_crypt_key, keys.k256_key):
        assert repr(secret) not in shown
        assert secret.hex() not in shown
    assert "PRIVATE KEY" not in shown


def a_kms(kms_url: str, platform: Platform, *, at: object) -> ProvidedKeys:
    """A KMS that gives keys of fives."""
    keys = AppKeys(b"\x05" * 32, b"\x05" * 32, b"\x05" * 32, bytes(65))
    return ProvidedKeys(keys, "", "", KmsProvider(kms_url, b"spki", "", "", OsImageHash(bytes(32))))


def test_the_environment_is_decrypted_for_the_app(site: Site, tmp_path: Path) -> None:
    """What the app expects of it is left, for its owner alone, as a file for a shell and as JSON."""
    compose = json.dumps(json.loads(app_compose(key_provider="kms")) | {"allowed_envs": ["A"]}).encode()
    platform = site.platform(compose)
    variables = [Variable("A", "a secret"), Variable("LD_PRELOAD", "evil.so")]
    blob = encrypt_env(env_public_key(b"\x05" * 32), serialise_environment(variables), random=CountingRandom())
    shared = replace(site.shared(compose, InstanceInfo(), ("https://kms.example",)), encrypted_env=blob)
    around = Surroundings(platform, a_kms, lambda: NOW, CountingRandom())

    boot(shared, around, work_dir=tmp_path)

    assert (tmp_path / DECRYPTED_ENV).read_text() == 'A="a secret"\n'
    assert json.loads((tmp_path / DECRYPTED_ENV_JSON).read_text()) == {"A": "a secret"}
    for name in (DECRYPTED_ENV, DECRYPTED_ENV_JSON):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600

    changed = replace(shared, encrypted_env=blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(SealError, match="encrypted environment: not for this key, or changed"):
        boot(changed, replace(around, platform=site.platform(compose)), work_dir=tmp_path)


def test_an_environment_without_a_kms_is_refused(site: Site, tmp_path: Path) -> None:
    """There is no key that it could be encrypted to."""
    shared = replace(site.shared(app_compose(), InstanceInfo()), encrypted_env=bytes(60))
    around = Surroundings(site.platform(app_compose()), no_kms, lambda: NOW, CountingRandom())
    with pytest.raises(ConfigError, match="encrypted environment: want a KMS"):
        boot(shared, around, work_dir=tmp_path)
