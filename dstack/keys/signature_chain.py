"""Who vouches for a key: the k256 root signs app keys, an app key signs purpose keys (kms.md 3.3, 8.2, 9).

A recoverable signature is r(32) || s(32) || recovery id(1), the id being 0 or 1, over the Keccak-256 of a message;
nonces follow RFC 6979 and s is low, so equal inputs give equal bytes. The messages carry no lengths: what keeps them
apart is that an app id has exactly 20 bytes and a key one of two sizes.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import coincurve

from dstack.errors import KeyMalformedError, SignatureUntrustedError
from dstack.keys.scalars import K256_ORDER, k256_from_scalar
from dstack.values import AppId

SIGNATURE_SIZE = 65
PUBLIC_KEY_SIZE = 33

_APP_KEY_TAG = b"dstack-kms-issued:"
_ENV_KEY_TAG = b"dstack-env-encrypt-pubkey:"

_TIMESTAMP_SIZE = 8
_PLAIN_KEY_SIZE = 32
_PURPOSE_KEY_SIZES = (_PLAIN_KEY_SIZE, PUBLIC_KEY_SIZE)


def keccak256(message: bytes) -> bytes:
    """The Keccak-256 digest of Ethereum, which is not SHA3-256."""
    # Slow to load, and whoever only measures or verifies has no use for it.
    from Crypto.Hash import keccak

    return keccak.new(digest_bits=256, data=message).digest()


def sign_recoverable(key: bytes, message: bytes) -> bytes:
    """Sign *message* with a secp256k1 scalar; 65 bytes.

    Raises:
        KeyMalformedError: *key* is not a secp256k1 scalar.
    """
    return k256_from_scalar(key).sign_recoverable(message, hasher=keccak256)


def recover(message: bytes, signature: bytes) -> bytes:
    """The compressed public key, 33 bytes, that made *signature* over *message*.

    There nearly always is one: the answer means nothing until it is compared with a key that is known.

    Raises:
        KeyMalformedError: *signature* is not of the form this module writes.
        SignatureUntrustedError: No key can have made it.
    """
    if len(signature) != SIGNATURE_SIZE:
        raise KeyMalformedError(f"signature: want {SIGNATURE_SIZE} bytes, got {len(signature)}")
    if signature[-1] > 1:
        raise KeyMalformedError(f"signature: want recovery id 0 or 1, got {signature[-1]}")
    if int.from_bytes(signature[32:64], "big") > K256_ORDER // 2:
        raise KeyMalformedError("signature: want the low of its two s values, got the high one")
    try:
        signer = coincurve.PublicKey.from_signature_and_message(signature, message, hasher=keccak256)
    except ValueError as exc:
        raise SignatureUntrustedError("signature: no key can have made it") from exc
    return signer.format(compressed=True)


def app_key_message(app_id: AppId, public_key: bytes) -> bytes:
    """What the root signs to vouch for an app's secp256k1 key (33 bytes, compressed).

    Raises:
        KeyMalformedError: *public_key* has another length.
    """
    return _APP_KEY_TAG + app_id + _sized(public_key, (PUBLIC_KEY_SIZE,), "app key")


def env_public_key_message(app_id: AppId, public_key: bytes, timestamp: int | None) -> bytes:
    """What the root signs to vouch for an app's env key (32 bytes, X25519).

    Args:
        app_id: The app.
        public_key: Its env key.
        timestamp: Seconds since 1970; None for the older form without it.

    Raises:
        KeyMalformedError: A key of another length, or a timestamp that 64 bits do not hold.
    """
    _sized(public_key, (_PLAIN_KEY_SIZE,), "env key")
    if timestamp is None:
        return _ENV_KEY_TAG + app_id + public_key
    if not 0 <= timestamp < 1 << 8 * _TIMESTAMP_SIZE:
        raise KeyMalformedError("timestamp: want an unsigned 64-bit number")
    return _ENV_KEY_TAG + app_id + timestamp.to_bytes(_TIMESTAMP_SIZE, "big") + public_key


def purpose_message(purpose: str, public_key: bytes) -> bytes:
    """What an app key signs to vouch for a key derived from it.

    Args:
        purpose: Free text chosen by the app.
        public_key: 33 bytes (secp256k1, compressed) or 32 (Ed25519).

    Raises:
        KeyMalformedError: *public_key* has another length.
    """
    return f"{purpose}:{_sized(public_key, _PURPOSE_KEY_SIZES, 'purpose key').hex()}".encode()


def sign_app_key(root_k256: bytes, app_id: AppId, public_key: bytes) -> bytes:
    """The root's signature over an app's public key; 65 bytes.

    Raises:
        KeyMalformedError: A key is not of its form.
    """
    return sign_recoverable(root_k256, app_key_message(app_id, public_key))


def sign_env_public_key(root_k256: bytes, app_id: AppId, public_key: bytes, timestamp: int | None) -> bytes:
    """The root's signature over an app's env key; 65 bytes. Without a timestamp it is the older, replayable form.

    Raises:
        KeyMalformedError: A key or the timestamp is not of its form.
    """
    return sign_recoverable(root_k256, env_public_key_message(app_id, public_key, timestamp))


def sign_purpose_key(app_k256_key: bytes, purpose: str, public_key: bytes) -> bytes:
    """An app key's signature over a key derived from it; 65 bytes.

    Raises:
        KeyMalformedError: A key is not of its form.
    """
    return sign_recoverable(app_k256_key, purpose_message(purpose, public_key))


def verify_app_key(root_public_key: bytes, app_id: AppId, public_key: bytes, signature: bytes) -> None:
    """Establish that the root vouches for this key of this app.

    Raises:
        KeyMalformedError: A key or the signature is not of its form.
        SignatureUntrustedError: The signature is not the root's, or is about another app or key.
    """
    signer = recover(app_key_message(app_id, public_key), signature)
    _require_signer(signer, root_public_key, "app key")


def verify_env_public_key(
    root_public_key: bytes, app_id: AppId, public_key: bytes, timestamp: int | None, signature: bytes
) -> None:
    """Establish that the root vouches for this env key of this app.

    Does not judge how old *timestamp* is.

    Raises:
        KeyMalformedError: A key, the timestamp or the signature is not of its form.
        SignatureUntrustedError: The signature is not the root's, or is about something else.
    """
    signer = recover(env_public_key_message(app_id, public_key, timestamp), signature)
    _require_signer(signer, root_public_key, "env key")


def verify_signature_chain(
    root_public_key: bytes, app_id: AppId, *, purpose: str, public_key: bytes, chain: Sequence[bytes]
) -> bytes:
    """Establish that a purpose key belongs to an app, by the root's word.

    Args:
        root_public_key: 33 bytes, from a source that is trusted, such as the contract.
        app_id: The app it should belong to.
        purpose: The purpose it should have.
        public_key: The purpose key.
        chain: The app key's signature over it, then the root's over the app key.

    Returns:
        The app's public key, 33 bytes.

    Raises:
        KeyMalformedError: Not two signatures, or one of them or a key is not of its form.
        SignatureUntrustedError: The chain does not lead from this key of this app to that root.
    """
    if len(chain) != 2:
        raise KeyMalformedError(f"signature chain: want 2 signatures, got {len(chain)}")
    app_public_key = recover(purpose_message(purpose, public_key), chain[0])
    verify_app_key(root_public_key, app_id, app_public_key, chain[1])
    return app_public_key


def _require_signer(signer: bytes, wanted: bytes, what: str) -> None:
    if not hmac.compare_digest(signer, _sized(wanted, (PUBLIC_KEY_SIZE,), "root key")):
        raise SignatureUntrustedError(f"{what}: want a signature by {wanted.hex()}, got one by {signer.hex()}")


def _sized(raw: bytes, sizes: tuple[int, ...], what: str) -> bytes:
    if len(raw) not in sizes:
        raise KeyMalformedError(f"{what}: want {' or '.join(map(str, sizes))} bytes, got {len(raw)}")
    return raw
