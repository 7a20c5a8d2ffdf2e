"""The tree of derived keys."""

import hashlib
import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import KeyMalformedError
from dstack.keys import derivation
from dstack.keys.derivation import RootKeys, derive_app_keys
from dstack.keys.scalars import K256_ORDER, P256_ORDER, k256_public_key, p256_from_scalar
from dstack.keys.signature_chain import verify_app_key
from dstack.values import AppId, InstanceId


def _hkdf(ikm: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 written out."""
    prk = hmac.digest(b"RATLS", ikm, "sha256")
    blocks, block = b"", b""
    for count in range(1, -(-size // 32) + 1):
        block = hmac.digest(prk, block + info + bytes((count,)), "sha256")
        blocks += block
    return blocks[:size]


@given(st.binary(min_size=1, max_size=64), st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 200))
def test_kdf_is_hkdf_over_the_concatenated_context(ikm: bytes, context: list[bytes], size: int) -> None:
    """Pieces are joined without separators, under the salt RATLS."""
    assert derivation.kdf(ikm, context, size) == _hkdf(ikm, b"".join(context), size)


def test_kdf_refuses_what_hkdf_cannot_do() -> None:
    """No key material, no bytes wanted, and too many bytes wanted are errors of their own."""
    with pytest.raises(KeyMalformedError, match="nothing to derive from"):
        derivation.kdf(b"", [])
    for size in (0, 8161):
        with pytest.raises(KeyMalformedError, match=f"want 1 to 8160 bytes, asked for {size}"):
            derivation.kdf(b"k", [], size)


@given(st.integers(1, P256_ORDER - 1))
def test_the_frozen_pkcs8_is_that_of_a_key_library(number: int) -> None:
    """The DER built by hand equals the encoder's, for any scalar, and has 138 bytes."""
    scalar = number.to_bytes(32, "big")

    der = derivation.p256_pkcs8(scalar)

    assert len(der) == 138
    assert der == p256_from_scalar(scalar).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_dh_secret_is_the_hash_of_the_child_key(roots: RootKeys) -> None:
    """SHA-256 of the PKCS#8 DER of the derived P-256 key."""
    child = derivation.derive_p256(roots.ca, (b"a", b"b"))

    secret = derivation.derive_dh_secret(roots.ca, (b"a", b"b"))

    assert secret == hashlib.sha256(derivation.p256_pkcs8(child)).digest()


def test_every_released_key_is_golden(golden: Any) -> None:
    """What a KMS releases equals golden data, for three apps with two instances and without one."""
    data = golden("kdf")
    roots = RootKeys(bytes.fromhex(data["root_ca_scalar"]), bytes.fromhex(data["root_k256"]))

    for case in data["cases"]:
        instance = InstanceId.from_hex(case["instance_id"]) if case["instance_id"] else None
        keys = derive_app_keys(roots, AppId.from_hex(case["app_id"]), instance)
        assert keys == derivation.AppKeys(
            disk_crypt_key=bytes.fromhex(case["disk"]["disk_crypt_key"]),
            env_crypt_key=bytes.fromhex(case["env"]["env_crypt_key"]),
            k256_key=bytes.fromhex(case["k256"]["k256_key"]),
            k256_signature=bytes.fromhex(case["k256"]["k256_signature"]),
        )
        assert derivation.env_public_key(keys.env_crypt_key).hex() == case["env"]["x25519_public"]
        assert derivation.derive_app_ca(roots, AppId.from_hex(case["app_id"])).hex() == case["app_ca"]["private_scalar"]


def test_the_released_signature_is_by_the_root(roots: RootKeys, app_id: AppId) -> None:
    """The signature that comes with the app key verifies under the root's public key, for this app."""
    keys = derive_app_keys(roots, app_id, None)

    verify_app_key(k256_public_key(roots.k256), app_id, k256_public_key(keys.k256_key), keys.k256_signature)


def test_only_the_disk_key_depends_on_the_instance(roots: RootKeys, app_id: AppId) -> None:
    """Two instances of an app share every key but the disk key."""
    first, second = (derive_app_keys(roots, app_id, InstanceId(bytes((n,)) * 20)) for n in (1, 2))

    assert first.disk_crypt_key != second.disk_crypt_key
    assert first.env_crypt_key == second.env_crypt_key
    assert (first.k256_key, first.k256_signature) == (second.k256_key, second.k256_signature)


def test_apps_share_no_key(roots: RootKeys) -> None:
    """Of two apps no two keys are equal."""
    one, other = (derive_app_keys(roots, AppId(bytes((n,)) * 20), None) for n in (1, 2))

    keys = [key for each in (one, other) for key in (each.disk_crypt_key, each.env_crypt_key, each.k256_key)]
    assert len(set(keys)) == 6


def test_seeded_keys_are_golden() -> None:
    """A machine without a KMS makes these keys of this seed, and neither an env key nor a signature."""
    seed = bytes.fromhex("08f6c86cb67851fe45034d317d09883a7b9daf4a6ab8412fb8882d85a25706cc")

    assert derivation.app_keys_from_seed(seed) == derivation.AppKeys(
        disk_crypt_key=bytes.fromhex("85b5ca7eef0f145623fdeafe23320acb6dd462d184eed78b559818c9a123b217"),
        env_crypt_key=b"",
        k256_key=bytes.fromhex("c4c377dae5eb8d144d6674c4b8b088a94f178074a6dc831abc55df4e5ffd6406"),
        k256_signature=b"",
    )
    assert derivation.app_ca_from_seed(seed).hex() == "506aa4d8cc12d35eb6cf865b180c660a9c7b15c6a2a17834c1b3619d168046e1"


def test_a_purpose_key_follows_its_path() -> None:
    """The path, as UTF-8, is all that tells purpose keys of one app apart."""
    app_key = bytes.fromhex("1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c2d3e4f5a6b7c8d9e0f1a2b")

    assert (
        derivation.derive_purpose_key(app_key, "vms").hex()
        == "9db79b3fefe69f2a7b7efbc908c854bf845a629023361f2c9cb3db09fb99010f"
    )
    assert (
        derivation.derive_purpose_key(app_key, "日本").hex()
        == "a06d1d210f3998c31095dc7779074a0cf6f236a9a93fc2ed1aa0218e36ed7444"
    )


def test_secrets_are_not_printed(roots: RootKeys, app_id: AppId) -> None:
    """Neither root keys nor app keys show key material when they are printed."""
    keys = derive_app_keys(roots, app_id, None)

    shown = f"{roots!r} {keys!r}"

    for secret in (roots.ca, roots.k256, keys.disk_crypt_key, keys.env_crypt_key, keys.k256_key):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


@pytest.mark.parametrize(
    ("ca", "k256", "named"),
    [
        (bytes(32), bytes(31) + b"\x01", "root CA key: out of the range"),
        (P256_ORDER.to_bytes(32, "big"), bytes(31) + b"\x01", "root CA key: out of the range"),
        (bytes(31) + b"\x01", K256_ORDER.to_bytes(32, "big"), "root k256 key: out of the range"),
        (bytes(31) + b"\x01", b"\x01", "root k256 key: want 32 bytes, got 1"),
    ],
)
def test_root_keys_are_scalars(ca: bytes, k256: bytes, named: str) -> None:
    """Root keys that cannot be keys do not exist."""
    with pytest.raises(KeyMalformedError, match=named):
        RootKeys(ca, k256)


def test_epoch_zero_is_upstreams(roots: RootKeys, app_id: AppId) -> None:
    """Keys that were derived before there were epochs are those of epoch 0."""
    instance = InstanceId(bytes(20))

    assert derivation.derive_app_keys(roots, app_id, instance, 0) == derivation.derive_app_keys(roots, app_id, instance)
    assert derivation.env_context(app_id, 0) == (app_id, b"env-encrypt-key")


def test_each_epoch_has_keys_of_its_own(roots: RootKeys, app_id: AppId) -> None:
    """No key of an app is the same in two epochs, and none equals one of another kind."""
    keys = [derivation.derive_app_keys(roots, app_id, None, epoch) for epoch in (0, 1, 2, 2**64 - 1)]
    seen = [
        *(key for each in keys for key in (each.disk_crypt_key, each.env_crypt_key, each.k256_key)),
        *(derivation.derive_app_ca(roots, app_id, epoch) for epoch in (0, 1, 2)),
    ]

    assert len(set(seen)) == len(seen) == 15


def test_no_context_of_one_epoch_is_one_of_another(app_id: AppId) -> None:
    """What HKDF is told has a length of its own for each kind of key, before and after epoch 0."""
    instance = InstanceId(bytes(20))
    kinds = [
        lambda epoch: derivation.disk_context(app_id, None, epoch),
        lambda epoch: derivation.disk_context(app_id, instance, epoch),
        lambda epoch: derivation.env_context(app_id, epoch),
        lambda epoch: derivation.app_ca_context(app_id, epoch),
        lambda epoch: derivation.app_key_context(app_id, epoch),
    ]
    lengths = [sum(map(len, kind(epoch))) for kind in kinds for epoch in (0, 7)]

    assert len(set(lengths)) == len(lengths)


@pytest.mark.parametrize("epoch", [-1, 2**64])
def test_epoch_that_is_none_is_refused(roots: RootKeys, app_id: AppId, epoch: int) -> None:
    """An epoch is an unsigned number of 64 bits, as in the contract."""
    with pytest.raises(KeyMalformedError, match="key epoch: want an unsigned 64-bit number"):
        derivation.derive_app_keys(roots, app_id, None, epoch)
