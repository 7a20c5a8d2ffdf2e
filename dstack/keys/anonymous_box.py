"""Anonymous boxes, as libsodium seals them: what a local key provider gives a guest its key in (guest.md 5.5).

X25519, XSalsa20-Poly1305, the ephemeral public key first. Nothing in a box says who sealed it; boxes of this project's
own are those of `sealing.py`.
"""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from dstack.errors import KeyMalformedError, SealError
from dstack.keys.scalars import require_secret

KEY_SIZE = 32
OVERHEAD = KEY_SIZE + 16
"""How much longer a box is than what is in it."""


def seal_anonymously(public_key: bytes, plaintext: bytes) -> bytes:
    """Encrypt so that only the holder of one key opens it.

    Args:
        public_key: X25519, 32 bytes.
        plaintext: Of any length.

    Returns:
        A fresh public key (32), the tag (16), the ciphertext.

    Raises:
        KeyMalformedError: *public_key* is not one that anything can be encrypted to.
    """
    if len(public_key) != KEY_SIZE:
        raise KeyMalformedError(f"X25519 public key: want {KEY_SIZE} bytes, got {len(public_key)}")
    try:
        return SealedBox(PublicKey(public_key)).encrypt(plaintext)
    except CryptoError as exc:
        raise KeyMalformedError("X25519 public key: a point of small order") from exc


def open_anonymous(private_key: bytes, box: bytes) -> bytes:
    """The plaintext of an anonymous box.

    Raises:
        KeyMalformedError: *private_key* is not 32 bytes.
        SealError: The box was sealed to another key, or was changed.
    """
    key = PrivateKey(require_secret(private_key, "X25519 private key"))
    if len(box) < OVERHEAD:
        raise SealError(f"anonymous box: want at least {OVERHEAD} bytes, got {len(box)}")
    try:
        return SealedBox(key).decrypt(box)
    except CryptoError as exc:
        raise SealError("anonymous box: not for this key, or changed") from exc
