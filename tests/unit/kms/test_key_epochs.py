"""Key epochs: the contract says which keys an app gets, and how long those before them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from dstack.errors import RefusedError, UnavailableError
from dstack.keys import derive_app_keys, derive_env_key, env_public_key
from dstack.keys.derivation import derive_app_ca
from dstack.keys.pem import load_certificate, spki_der
from dstack.keys.scalars import p256_from_scalar
from dstack.policy.key_epochs import FIRST_EPOCH, KeyEpochs
from dstack.transport.server import CallContext
from dstack.wire.kms import AppIdRequest, AppKeyResponse, EpochKeys, GetAppKeyRequest
from dstack.wire.message import from_protobuf, to_json, to_protobuf
from kms.release import KeyRelease
from kms.service import KmsService
from tests.unit.kms.conftest import APP_ID, AT, INSTANCE_ID, World, allow_kms, app_machine
from tests.unit.kms.test_release import certificate_of
from tests.unit.kms.test_release_of_certificates import KEYS, request
from tests.worlds import root_keys

ROOT = root_keys(KEYS.roots)
ROTATED = KeyEpochs(2, AT + timedelta(days=1))


@pytest.fixture
def release(world: World) -> KeyRelease:
    """The release of a KMS that the chain permits; its keys were rotated twice."""
    allow_kms(world)
    world.chain.epochs = ROTATED
    return KeyRelease(KEYS.roots, world.own, world.verifier, world.chain)


def test_both_epochs_are_served_inside_the_window(release: KeyRelease) -> None:
    """An app gets the keys of the current epoch, and those of the one before to move its data with."""
    released = release.app_keys(certificate_of(app_machine()), "", "request")

    assert (released.epoch, released.keys) == (2, derive_app_keys(ROOT, APP_ID, INSTANCE_ID, 2))
    assert released.previous == derive_app_keys(ROOT, APP_ID, INSTANCE_ID, 1)


def test_only_the_current_epoch_is_served_afterwards(release: KeyRelease, world: World) -> None:
    """When the window has closed, nobody gets the earlier keys any more."""
    world.clock.now = AT + timedelta(days=1)

    assert release.app_keys(certificate_of(app_machine()), "", "request").previous is None
    with pytest.raises(RefusedError, match="key epoch: want 2, or 1 in its window, got 1"):
        release.env_key(APP_ID, 1, "request")


def test_host_cannot_hold_the_window_open(release: KeyRelease, world: World) -> None:
    """The window also closes by the time of the block, whatever this machine's clock is made to say."""
    until = int((AT + timedelta(days=1)).timestamp())
    world.chain.block = replace(world.chain.block, timestamp=until)

    assert release.app_keys(certificate_of(app_machine()), "", "request").previous is None


@pytest.mark.parametrize(("asked", "served"), [(None, 2), (2, 2), (1, 1)])
def test_environments_are_encrypted_to_a_served_epoch(release: KeyRelease, asked: int | None, served: int) -> None:
    """To the current one, unless the one before is asked for in its window."""
    key = release.env_key(APP_ID, asked, "request")

    assert (key.epoch, key.public_key) == (served, env_public_key(derive_env_key(ROOT, APP_ID, served)))


@pytest.mark.parametrize("epoch", [0, 3])
def test_environments_are_not_encrypted_to_any_other(release: KeyRelease, epoch: int) -> None:
    """Nothing older than the one before, and nothing that has not begun."""
    with pytest.raises(RefusedError, match=f"want 2, or 1 in its window, got {epoch}"):
        release.env_key(APP_ID, epoch, "request")


def test_certificates_are_of_the_current_epoch(release: KeyRelease) -> None:
    """The app's authority is that of the current epoch, under the same root."""
    chain = release.certificate(KEYS.root_ca_pem, *request(app_machine()), "", "request")

    _, app_ca, root = map(load_certificate, chain)
    assert spki_der(app_ca) == spki_der(p256_from_scalar(derive_app_ca(ROOT, APP_ID, 2)))
    app_ca.verify_directly_issued_by(root)


def test_epochs_do_not_go_back(release: KeyRelease, world: World) -> None:
    """A state of the chain before the last rotation is not the present one: neither yes nor no."""
    release.app_keys(certificate_of(app_machine()), "", "request")
    world.chain.epochs = FIRST_EPOCH

    with pytest.raises(UnavailableError, match="could not ask: key epoch went back from 2 to 0"):
        release.app_keys(certificate_of(app_machine()), "", "request")


def test_epochs_on_the_wire(release: KeyRelease, world: World) -> None:
    """Two epochs show as members that upstream's readers skip; before a rotation the answer has upstream's only."""
    service = KmsService(KEYS, release, world.chain, None, simulated=True)
    context = CallContext(certificate_of(app_machine()), "request")
    before = derive_app_keys(ROOT, APP_ID, INSTANCE_ID, 1)

    answer = service.get_app_key(GetAppKeyRequest(api_version=1), context)
    told = service.get_app_env_encrypt_pub_key(AppIdRequest(APP_ID, key_epoch=1), context)
    world.chain.epochs = FIRST_EPOCH
    plain = KmsService(KEYS, KeyRelease(KEYS.roots, world.own, world.verifier, world.chain), world.chain, None, True)

    assert answer.previous == EpochKeys(
        key_epoch=1,
        disk_crypt_key=before.disk_crypt_key,
        env_crypt_key=before.env_crypt_key,
        k256_key=before.k256_key,
        k256_signature=before.k256_signature,
        served_until=int((AT + timedelta(days=1)).timestamp()),
    )
    assert json.loads(to_json(answer))["key_epoch"] == 2
    assert from_protobuf(AppKeyResponse, to_protobuf(answer)) == answer
    assert told.key_epoch == 1
    first = json.loads(to_json(plain.get_app_key(GetAppKeyRequest(api_version=1), context)))
    assert list(first) == [
        "ca_cert",
        "disk_crypt_key",
        "env_crypt_key",
        "k256_key",
        "k256_signature",
        "tproxy_app_id",
        "gateway_app_id",
        "os_image_hash",
    ]
