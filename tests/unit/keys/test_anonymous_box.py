"""Anonymous boxes as libsodium makes them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dstack.errors import KeyMalformedError, SealError
from dstack.keys.anonymous_box import OVERHEAD, open_anonymous, seal_anonymously

SECRET = bytes(range(32))
PUBLIC = X25519PrivateKey.from_private_bytes(SECRET).public_key().public_bytes_raw()


@pytest.mark.parametrize("plaintext", [b"", b"k" * 32, bytes(5000)])
def test_a_box_is_opened_by_its_key(plaintext: bytes) -> None:
    """What was sealed comes out; no two boxes are alike."""
    box, other = seal_anonymously(PUBLIC, plaintext), seal_anonymously(PUBLIC, plaintext)
    assert open_anonymous(SECRET, box) == open_anonymous(SECRET, other) == plaintext
    assert len(box) == OVERHEAD + len(plaintext)
    assert box != other


def test_a_changed_box_is_refused() -> None:
    """Every byte of a box counts."""
    box = seal_anonymously(PUBLIC, b"key")
    for position in range(len(box)):
        changed = bytearray(box)
        changed[position] ^= 1
        with pytest.raises(SealError, match="anonymous box: not for this key, or changed"):
            open_anonymous(SECRET, bytes(changed))


def test_what_is_no_box_is_refused() -> None:
    """Too short, for somebody else, or with keys that are none."""
    with pytest.raises(SealError, match="want at least 48 bytes, got 47"):
        open_anonymous(SECRET, bytes(47))
    with pytest.raises(SealError, match="not for this key"):
        open_anonymous(bytes(32), seal_anonymously(PUBLIC, b"key"))
    with pytest.raises(KeyMalformedError, match="X25519 private key: want 32 bytes, got 31"):
        open_anonymous(SECRET[1:], seal_anonymously(PUBLIC, b"key"))
    with pytest.raises(KeyMalformedError, match="X25519 public key: want 32 bytes, got 33"):
        seal_anonymously(PUBLIC + b"\0", b"key")
    with pytest.raises(KeyMalformedError, match="a point of small order"):
        seal_anonymously(bytes(32), b"key")
