"""Signatures over an app's data with its purpose keys (kms.md section 9, guest.md 4.3)."""

from __future__ import annotations

import enum
import hashlib

import coincurve
from coincurve.ecdsa import cdata_to_der, deserialize_compact
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dstack.errors import KeyMalformedError, SignatureUntrustedError
from dstack.keys.scalars import k256_from_scalar, k256_public_key, require_secret

_DIGEST_SIZE = 32


class Algorithm(enum.Enum):
    """How data is signed; the value is the name on the network."""

    ED25519 = "ed25519"
    SECP256K1 = "secp256k1"
    SECP256K1_PREHASHED = "secp256k1_prehashed"


_ALIASES = {"": Algorithm.SECP256K1, "k256": Algorithm.SECP256K1}


def parse_algorithm(name: str) -> Algorithm:
    """The algorithm of that name; no name means secp256k1, and so does `k256`.

    Raises:
        KeyMalformedError: Another name.
    """
    if name in _ALIASES:
        return _ALIASES[name]
    try:
        return Algorithm(name)
    except ValueError as exc:
        raise KeyMalformedError("Unsupported algorithm") from exc


def public_key_of(algorithm: Algorithm, key: bytes) -> bytes:
    """The public key of a purpose key: 32 bytes for Ed25519, else 33 (compressed).

    Raises:
        KeyMalformedError: *key* is not 32 bytes, or not a secp256k1 scalar where it must be one.
    """
    if algorithm is Algorithm.ED25519:
        return _ed25519(key).public_key().public_bytes_raw()
    return k256_public_key(key)


def sign_data(algorithm: Algorithm, key: bytes, data: bytes) -> bytes:
    """Sign *data*, or a digest of 32 bytes for the prehashed algorithm; 64 bytes.

    Raises:
        KeyMalformedError: *key* is not of its form, or a digest has another length.
    """
    if algorithm is Algorithm.ED25519:
        return _ed25519(key).sign(data)
    return k256_from_scalar(key).sign_recoverable(_digest(algorithm, data), hasher=None)[:64]


def verify_data(algorithm: Algorithm, public_key: bytes, data: bytes, signature: bytes) -> None:
    """Establish that the key behind *public_key* signed *data*. Says nothing of whose key that is.

    Raises:
        KeyMalformedError: *public_key* is not one, or a digest has another length than 32 bytes.
        SignatureUntrustedError: It did not.
    """
    if algorithm is Algorithm.ED25519:
        _verify_ed25519(public_key, data, signature)
    else:
        _verify_k256(public_key, _digest(algorithm, data), signature)


def _verify_ed25519(public_key: bytes, data: bytes, signature: bytes) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError as exc:
        raise KeyMalformedError(f"Ed25519 public key: want 32 bytes, got {len(public_key)}") from exc
    try:
        key.verify(signature, data)
    except InvalidSignature as exc:
        raise SignatureUntrustedError("data signature: not by this Ed25519 key") from exc


def _verify_k256(public_key: bytes, digest: bytes, signature: bytes) -> None:
    try:
        key = coincurve.PublicKey(public_key)
    except ValueError as exc:
        raise KeyMalformedError("secp256k1 public key: not a point of the curve in SEC1 form") from exc
    try:
        valid = key.verify(cdata_to_der(deserialize_compact(signature)), digest, hasher=None)
    except ValueError as exc:
        raise SignatureUntrustedError("data signature: want 64 bytes, r and s below the order") from exc
    if not valid:
        raise SignatureUntrustedError("data signature: not by this secp256k1 key")


def _ed25519(key: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(require_secret(key, "Ed25519 key"))


def _digest(algorithm: Algorithm, data: bytes) -> bytes:
    if algorithm is Algorithm.SECP256K1:
        return hashlib.sha256(data).digest()
    if len(data) != _DIGEST_SIZE:
        raise KeyMalformedError(
            f"Pre-hashed signing requires a {_DIGEST_SIZE}-byte digest, but received {len(data)} bytes"
        )
    return data
