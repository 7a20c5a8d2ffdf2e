"""Private scalars: 32 big-endian bytes in the range of their curve, and the public keys they stand for."""

from __future__ import annotations

import coincurve
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.errors import KeyMalformedError

SCALAR_SIZE = 32

# SEC 2, sections 2.4.2 (secp256r1) and 2.4.1 (secp256k1).
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
K256_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def require_scalar(raw: bytes, order: int, what: str) -> bytes:
    """*raw*, if it is a private scalar of a curve of that order. It is never reduced.

    Raises:
        KeyMalformedError: Not 32 bytes, zero, or not below the order.
    """
    if len(raw) != SCALAR_SIZE:
        raise KeyMalformedError(f"{what}: want {SCALAR_SIZE} bytes, got {len(raw)}")
    if not 0 < int.from_bytes(raw, "big") < order:
        raise KeyMalformedError(f"{what}: out of the range of its curve")
    return raw


def require_secret(raw: bytes, what: str) -> bytes:
    """*raw*, if it is 32 bytes of key material without a range: a seed, or an X25519 key before clamping.

    Raises:
        KeyMalformedError: Another length.
    """
    if len(raw) != SCALAR_SIZE:
        raise KeyMalformedError(f"{what}: want {SCALAR_SIZE} bytes, got {len(raw)}")
    return raw


def p256_from_scalar(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a scalar.

    Raises:
        KeyMalformedError: Wrong length or range.
    """
    require_scalar(scalar, P256_ORDER, "P-256 key")
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def k256_from_scalar(scalar: bytes) -> coincurve.PrivateKey:
    """The secp256k1 key of a scalar.

    Raises:
        KeyMalformedError: Wrong length or range.
    """
    return coincurve.PrivateKey(require_scalar(scalar, K256_ORDER, "secp256k1 key"))


def k256_public_key(key: bytes) -> bytes:
    """The compressed public key (SEC1, 33 bytes) of a secp256k1 scalar.

    Raises:
        KeyMalformedError: Wrong length or range.
    """
    return coincurve.PublicKey.from_valid_secret(require_scalar(key, K256_ORDER, "secp256k1 key")).format(
        compressed=True
    )
