"""Security reports about dstack's KMS (kms.md section 11) that concern keys, each by its number."""

from __future__ import annotations

import ast
import json
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dstack.errors import InputError, KeyReleaseDeniedError
from dstack.keys import derive_app_keys, derive_purpose_key, k256_public_key, p256_from_scalar
from dstack.keys.data_signatures import Algorithm, public_key_of
from dstack.keys.derivation import disk_context, p256_pkcs8
from dstack.keys.signature_chain import app_key_message, env_public_key_message
from dstack.measurement.compose import compose_hash, parse_app_compose
from dstack.transport.server import CallContext
from dstack.values import AppId, InstanceId
from dstack.wire.kms import GetAppKeyRequest
from kms.generation import generate_keys
from kms.release import KeyRelease
from kms.roots import Roots
from kms.service import KmsService
from tests.unit.kms.conftest import APP_ID, AT, COMPOSE_HASH, INSTANCE_ID, Machine, World, allow_kms, app_machine
from tests.unit.kms.test_release import ROOT, certificate_of


@pytest.fixture
def release(world: World) -> KeyRelease:
    """The release of a KMS that the chain permits."""
    allow_kms(world)
    return KeyRelease(Roots(ROOT), world.own, world.verifier, world.chain)


@pytest.mark.parametrize(
    "payloads",
    [{"instance-id": bytes(19)}, {"instance-id": bytes(21)}, {"app-id": bytes(19)}, {"app-id": bytes(21)}],
)
def test_report_549_ids_of_another_length_get_no_keys(release: KeyRelease, payloads: dict[str, bytes]) -> None:
    """HKDF's information has no separators, so only ids of their exact length lead to keys; bytes stay upstream's."""
    with pytest.raises(KeyReleaseDeniedError, match=r"^App not allowed: event (app|instance)-id: want 20 bytes, got"):
        release.app_keys(certificate_of(Machine(COMPOSE_HASH, APP_ID, INSTANCE_ID, changed=payloads)), "", "request")

    assert b"".join(disk_context(APP_ID, INSTANCE_ID)) == APP_ID + INSTANCE_ID + b"app-disk-crypt-key"


def test_report_549_an_instance_without_id_shares_its_disk_key_by_choice(release: KeyRelease) -> None:
    """The one id that may be empty is the instance's, and the key it leads to is no instance's."""
    shared = release.app_keys(certificate_of(Machine(COMPOSE_HASH, APP_ID)), "", "request").keys

    assert shared.disk_crypt_key == derive_app_keys(ROOT, APP_ID, None).disk_crypt_key
    assert shared.disk_crypt_key != derive_app_keys(ROOT, APP_ID, InstanceId(bytes(20))).disk_crypt_key


def test_report_550_a_compose_file_is_hashed_as_it_came() -> None:
    """Two files that mean the same are two apps: nothing is read and written anew before hashing."""
    raw = b'{"manifest_version": 2, "name": "a", "runner": "docker-compose", "docker_compose_file": "services: {}"}'
    again = json.dumps(json.loads(raw), separators=(",", ":")).encode()

    assert parse_app_compose(raw).compose_hash == compose_hash(raw) == sha256(raw).digest()
    assert compose_hash(raw) != compose_hash(again)


def test_report_551_scripts_of_a_compose_file_are_measured() -> None:
    """A script that runs before the app is part of what the chain allows: another script is another app."""
    plain = {"manifest_version": 2, "name": "a", "runner": "docker-compose", "docker_compose_file": "services: {}"}
    hashes = {
        compose_hash(json.dumps({**plain, **extra}).encode())
        for extra in ({}, {"pre_launch_script": "a"}, {"pre_launch_script": "b"}, {"init_script": "a"})
    }

    assert len(hashes) == 4


def test_report_552_keys_have_a_version(project_root: Path) -> None:
    """Epoch 0 is upstream's fixed scheme to the byte; the contract can begin others, whose keys are all different."""
    case = json.loads((project_root / "tests/vectors/kms/kdf.json").read_bytes())["cases"][0]
    epochs = [derive_app_keys(ROOT, AppId.from_hex(case["app_id"]), None, epoch) for epoch in range(3)]

    assert epochs[0] == derive_app_keys(ROOT, AppId.from_hex(case["app_id"]), None)
    assert len({keys.k256_key for keys in epochs} | {keys.env_crypt_key for keys in epochs}) == 6


def test_report_553_a_secret_does_not_depend_on_an_encoder() -> None:
    """The 138 bytes that are hashed are built by hand; today's library happens to write the same."""
    scalar = bytes(31) + b"\x07"
    library = p256_from_scalar(scalar).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

    assert p256_pkcs8(scalar) == library
    assert len(library) == 138


def test_report_554_signed_messages_cannot_be_read_two_ways() -> None:
    """The messages have no lengths, so an app id of another length is refused before anything is signed."""
    with pytest.raises(InputError, match="want 20 bytes, got 21"):
        app_key_message(AppId(bytes(21)), bytes(33))
    # A timestamp in front of the key has a message of its own length.
    lengths = {len(env_public_key_message(APP_ID, bytes(32), time)) for time in (None, 1)}
    assert len(lengths) == 2


def test_report_605_one_path_is_one_key_for_both_algorithms() -> None:
    """Kept, because keys in use depend on it; the agent's documentation says to use two paths for two algorithms."""
    key = derive_purpose_key(ROOT.k256, "path")

    assert public_key_of(Algorithm.SECP256K1, key) == k256_public_key(key)
    assert (
        public_key_of(Algorithm.ED25519, key)
        == Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
    )


def test_report_560_secrets_are_compared_in_constant_time(project_root: Path) -> None:
    """No comparison with == is made in the module that judges tokens and passwords, except of kinds and lengths."""
    tree = ast.parse((project_root / "kms" / "admin.py").read_text())
    compared = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops)
    ]

    assert compared == ["scheme.lower() == 'basic'", "scheme.lower() == 'bearer'"]


@pytest.mark.parametrize(
    ("named", "simulated", "told"),
    [
        ("any", False, ""),
        (" ANY ", False, ""),
        ("any", True, "any"),
        ("0xgateway", False, "0xgateway"),
        ("", False, ""),
    ],
)
def test_report_607_a_gateway_of_anybody_is_none(
    release: KeyRelease, world: World, named: str, simulated: bool, told: str
) -> None:
    """`any`, which would let every gateway stand between an app and its users, is passed on in development only."""
    world.chain.gateway = named
    keys = generate_keys("kms.example", world.machine, at=AT)
    service = KmsService(keys, release, world.chain, None, simulated)
    context = CallContext(certificate_of(app_machine()), "request")

    answer = service.get_app_key(GetAppKeyRequest(api_version=1), context)

    assert (answer.gateway_app_id, answer.tproxy_app_id) == (told, told)


def test_report_613_long_certificates_do_not_outlive_their_evidence(release: KeyRelease, world: World) -> None:
    """A client certificate of ten years is good for as long as its evidence verifies, which is asked each time."""
    certificate = certificate_of(app_machine())
    release.app_keys(certificate, "", "request")

    world.clock.now += timedelta(days=365)
    with pytest.raises(KeyReleaseDeniedError, match=r"^(App not allowed|KMS self authorization failed): step \d+: "):
        release.app_keys(certificate, "", "request")
