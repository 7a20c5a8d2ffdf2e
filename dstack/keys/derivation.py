"""What is derived from what: root keys, app keys, purpose keys (kms.md section 3).

There is one scheme and it is frozen: every derived value protects data that exists. The information of HKDF is the
plain concatenation of a context's pieces, so the fixed lengths of `AppId` and `InstanceId` are what keeps two
contexts apart.

Keys rotate by epochs. Those of epoch 0 are upstream's; each later epoch ends every context with its number, in pieces
of a fixed length, so that no context of one epoch is one of another. The root keys stay, and with them the name of
the KMS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from dstack.errors import KeyMalformedError
from dstack.keys.scalars import (
    K256_ORDER,
    P256_ORDER,
    k256_public_key,
    p256_from_scalar,
    require_scalar,
    require_secret,
)
from dstack.keys.signature_chain import sign_app_key
from dstack.values import AppId, InstanceId

SALT = b"RATLS"

# What a context ends with from epoch 1 on: this, and the number in 8 bytes, big-endian.
_EPOCH_TAG = b"-epoch-"
_EPOCH_SIZE = 8

# RFC 5869, 2.3: at most 255 blocks of the hash.
_LONGEST_OUTPUT = 255 * 32

# RFC 5958 around RFC 5915: version 0, P-256, ECPrivateKey version 1 without parameters, with the public key.
_PKCS8_BEFORE_SCALAR = bytes.fromhex(
    "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420",
)
_PKCS8_BEFORE_POINT = bytes.fromhex("a144034200")

Context = Sequence[bytes]


@dataclass(frozen=True, slots=True)
class RootKeys:
    """The two keys a KMS is: everything else follows from them.

    Attributes:
        ca: The P-256 scalar of the root CA.
        k256: The secp256k1 scalar that signs app keys.
    """

    ca: bytes = field(repr=False)
    k256: bytes = field(repr=False)

    def __post_init__(self) -> None:
        require_scalar(self.ca, P256_ORDER, "root CA key")
        require_scalar(self.k256, K256_ORDER, "root k256 key")


@dataclass(frozen=True, slots=True)
class AppKeys:
    """The keys of one app, or of one instance of it.

    Attributes:
        disk_crypt_key: 32 bytes.
        env_crypt_key: 32 bytes, an X25519 private key, not clamped; empty where there is no KMS.
        k256_key: A secp256k1 scalar.
        k256_signature: 65 bytes by the KMS's root over the app key; empty where there is no KMS.
    """

    disk_crypt_key: bytes = field(repr=False)
    env_crypt_key: bytes = field(repr=False)
    k256_key: bytes = field(repr=False)
    k256_signature: bytes


def kdf(ikm: bytes, context: Context, size: int = 32) -> bytes:
    """HKDF-SHA256 with dstack's salt.

    Args:
        ikm: Key material, at least one byte.
        context: Pieces of the information, concatenated without separators.
        size: How many bytes to make, 1 to 8160.

    Raises:
        KeyMalformedError: Empty key material, or a size that HKDF cannot make.
    """
    if not 0 < size <= _LONGEST_OUTPUT:
        raise KeyMalformedError(f"derived key: want 1 to {_LONGEST_OUTPUT} bytes, asked for {size}")
    return HKDFExpand(hashes.SHA256(), size, b"".join(context)).derive(kdf_extract(ikm))


def kdf_extract(ikm: bytes) -> bytes:
    """The first half of `kdf` (RFC 5869, 2.2): 32 bytes that any context expands from.

    Raises:
        KeyMalformedError: Empty key material.
    """
    if not ikm:
        raise KeyMalformedError("derived key: nothing to derive from")
    return HKDF.extract(hashes.SHA256(), SALT, ikm)


def p256_pkcs8(scalar: bytes) -> bytes:
    """The PKCS#8 DER of a P-256 key, 138 bytes, built by hand because keys are derived from its hash.

    Raises:
        KeyMalformedError: Not a P-256 scalar.
    """
    point = (
        p256_from_scalar(scalar)
        .public_key()
        .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    )
    return _PKCS8_BEFORE_SCALAR + scalar + _PKCS8_BEFORE_POINT + point


def derive_p256(parent_scalar: bytes, context: Context) -> bytes:
    """The scalar of a child P-256 key.

    Raises:
        KeyMalformedError: The parent is not 32 bytes, or the child is out of range (once in 2^32 contexts).
    """
    child = kdf(require_secret(parent_scalar, "parent key"), context)
    return require_scalar(child, P256_ORDER, "derived P-256 key")


def derive_dh_secret(parent_scalar: bytes, context: Context) -> bytes:
    """32 secret bytes: SHA-256 of the PKCS#8 DER of a child P-256 key.

    Raises:
        KeyMalformedError: As `derive_p256`.
    """
    return hashlib.sha256(p256_pkcs8(derive_p256(parent_scalar, context))).digest()


def disk_context(app_id: AppId, instance_id: InstanceId | None, epoch: int = 0) -> Context:
    """Context of the disk key; without an instance id all instances of the app share one disk key."""
    return _in_epoch((app_id, instance_id or b"", b"app-disk-crypt-key"), epoch)


def env_context(app_id: AppId, epoch: int = 0) -> Context:
    """Context of the key that environments are encrypted to."""
    return _in_epoch((app_id, b"env-encrypt-key"), epoch)


def app_ca_context(app_id: AppId, epoch: int = 0) -> Context:
    """Context of the app's certificate authority."""
    return _in_epoch((app_id, b"app-ca"), epoch)


def app_key_context(app_id: AppId, epoch: int = 0) -> Context:
    """Context of the app's secp256k1 key."""
    return _in_epoch((app_id, b"app-key"), epoch)


def _in_epoch(context: Context, epoch: int) -> Context:
    if not 0 <= epoch < 1 << 8 * _EPOCH_SIZE:
        raise KeyMalformedError(f"key epoch: want an unsigned 64-bit number, got {epoch}")
    return context if epoch == 0 else (*context, _EPOCH_TAG, epoch.to_bytes(_EPOCH_SIZE, "big"))


def derive_env_key(root: RootKeys, app_id: AppId, epoch: int = 0) -> bytes:
    """The app's X25519 private key, 32 bytes, not clamped.

    Raises:
        KeyMalformedError: A derived key is out of range, or *epoch* is.
    """
    return derive_dh_secret(root.ca, env_context(app_id, epoch))


def env_public_key(env_key: bytes) -> bytes:
    """The X25519 public key, 32 bytes, that environments are encrypted to.

    Raises:
        KeyMalformedError: *env_key* is not 32 bytes.
    """
    private = X25519PrivateKey.from_private_bytes(require_secret(env_key, "env key"))
    return private.public_key().public_bytes_raw()


def derive_app_ca(root: RootKeys, app_id: AppId, epoch: int = 0) -> bytes:
    """The P-256 scalar of the app's certificate authority.

    Raises:
        KeyMalformedError: The derived key is out of range, or *epoch* is.
    """
    return derive_p256(root.ca, app_ca_context(app_id, epoch))


def derive_app_keys(root: RootKeys, app_id: AppId, instance_id: InstanceId | None, epoch: int = 0) -> AppKeys:
    """The keys that a KMS gives to an instance of an app, in one epoch.

    Says nothing of whether it may have them: that is `kms.release`.

    Raises:
        KeyMalformedError: A derived key is out of range, or *epoch* is.
    """
    k256_key = kdf(root.k256, app_key_context(app_id, epoch))
    return AppKeys(
        disk_crypt_key=derive_dh_secret(root.ca, disk_context(app_id, instance_id, epoch)),
        env_crypt_key=derive_env_key(root, app_id, epoch),
        k256_key=k256_key,
        k256_signature=sign_app_key(root.k256, app_id, k256_public_key(k256_key)),
    )


def app_keys_from_seed(seed: bytes) -> AppKeys:
    """The keys of a machine without a KMS: nobody else can make them, nobody vouches for them (kms.md 3.4).

    Raises:
        KeyMalformedError: *seed* is not 32 bytes, or a derived key is out of range.
    """
    require_secret(seed, "seed")
    return AppKeys(
        disk_crypt_key=derive_dh_secret(seed, (b"app-disk-key",)),
        env_crypt_key=b"",
        k256_key=require_scalar(kdf(seed, (b"app-k256-key",)), K256_ORDER, "derived k256 key"),
        k256_signature=b"",
    )


def app_ca_from_seed(seed: bytes) -> bytes:
    """The P-256 scalar of the certificate authority of an app on a machine without a KMS.

    Raises:
        KeyMalformedError: As `app_keys_from_seed`.
    """
    return derive_p256(seed, (b"app-key",))


def derive_purpose_key(app_k256_key: bytes, path: str) -> bytes:
    """The 32 bytes an app gets for *path*: a secp256k1 scalar or an Ed25519 seed, the same bytes for both.

    Raises:
        KeyMalformedError: *app_k256_key* is not a secp256k1 scalar.
    """
    return kdf(require_scalar(app_k256_key, K256_ORDER, "app k256 key"), (path.encode(),))
