"""Encrypting to a key: sealed boxes (HPKE, RFC 9180) and encrypted environments (kms.md 8.1).

A sealed box is what this project writes: X25519, HKDF-SHA256, AES-256-GCM, base mode, the encapsulated key first.
The encrypted environment is upstream's older form, without a KDF and bound to nothing; neither names its sender.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from dstack.errors import KeyMalformedError, SealError
from dstack.keys.scalars import require_secret

KEY_SIZE = 32
IV_SIZE = 12
TAG_SIZE = 16

_ENV_HEAD = KEY_SIZE + IV_SIZE
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def seal(public_key: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Encrypt so that only the holder of one key opens it, and only for one occasion.

    Does not say who sealed it.

    Args:
        public_key: X25519, 32 bytes.
        plaintext: Of any length.
        info: The occasion; opening needs the same bytes.

    Returns:
        The encapsulated key (32), the ciphertext, the tag (16).

    Raises:
        KeyMalformedError: *public_key* is not one that anything can be encrypted to.
    """
    try:
        return _SUITE.encrypt(plaintext, _x25519_public(public_key), info=info)
    except ValueError as exc:
        raise KeyMalformedError("X25519 public key: a point of small order") from exc


def open_sealed(private_key: bytes, sealed: bytes, info: bytes) -> bytes:
    """The plaintext of a sealed box.

    Raises:
        KeyMalformedError: *private_key* is not 32 bytes.
        SealError: The box was sealed to another key or for another occasion, or was changed.
    """
    key = X25519PrivateKey.from_private_bytes(require_secret(private_key, "X25519 private key"))
    if len(sealed) < KEY_SIZE + TAG_SIZE:
        raise SealError(f"sealed box: want at least {KEY_SIZE + TAG_SIZE} bytes, got {len(sealed)}")
    try:
        return _SUITE.decrypt(sealed, key, info=info)
    except (InvalidTag, ValueError) as exc:
        raise SealError("sealed box: not for this key and occasion, or changed") from exc


def encrypt_env(public_key: bytes, plaintext: bytes, *, random: Callable[[int], bytes]) -> bytes:
    """Encrypt an app's environment to its env key.

    Args:
        public_key: X25519, 32 bytes; the caller has verified that it is the app's.
        plaintext: The JSON text of the environment.
        random: Gives that many fresh secret bytes: first 32 for the ephemeral key, then 12 for the IV.

    Returns:
        The ephemeral public key (32), the IV (12), the ciphertext, the tag (16).

    Raises:
        KeyMalformedError: *public_key* is not one that anything can be encrypted to.
    """
    ephemeral = X25519PrivateKey.from_private_bytes(random(KEY_SIZE))
    iv = random(IV_SIZE)
    try:
        shared = ephemeral.exchange(_x25519_public(public_key))
    except ValueError as exc:
        raise KeyMalformedError("X25519 public key: a point of small order") from exc
    return ephemeral.public_key().public_bytes_raw() + iv + AESGCM(shared).encrypt(iv, plaintext, None)


def decrypt_env(env_key: bytes, blob: bytes) -> bytes:
    """The plaintext of an encrypted environment. Anybody can have written it: the app must judge its content.

    Raises:
        KeyMalformedError: *env_key* is not 32 bytes.
        SealError: The blob is too short, was made for another key, or was changed.
    """
    key = X25519PrivateKey.from_private_bytes(require_secret(env_key, "env key"))
    if len(blob) < _ENV_HEAD + TAG_SIZE:
        raise SealError(f"encrypted environment: want at least {_ENV_HEAD + TAG_SIZE} bytes, got {len(blob)}")
    iv = blob[KEY_SIZE:_ENV_HEAD]
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(blob[:KEY_SIZE]))
        return AESGCM(shared).decrypt(iv, blob[_ENV_HEAD:], None)
    except (InvalidTag, ValueError) as exc:
        raise SealError("encrypted environment: not for this key, or changed") from exc


def _x25519_public(raw: bytes) -> X25519PublicKey:
    if len(raw) != KEY_SIZE:
        raise KeyMalformedError(f"X25519 public key: want {KEY_SIZE} bytes, got {len(raw)}")
    return X25519PublicKey.from_public_bytes(raw)
