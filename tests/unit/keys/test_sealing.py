"""Sealed boxes and encrypted environments."""

import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dstack.errors import KeyMalformedError, SealError
from dstack.keys.sealing import decrypt_env, encrypt_env, open_sealed, seal

KEY = bytes(range(32))
PUBLIC = X25519PrivateKey.from_private_bytes(KEY).public_key().public_bytes_raw()
OTHER = bytes(range(1, 33))


def _labelled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def _labelled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, size: int) -> bytes:
    return hmac.digest(prk, size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info + b"\x01", "sha256")[:size]


def _open_by_the_book(key: bytes, sealed: bytes, info: bytes) -> bytes:
    """RFC 9180, base mode, written out: KEM 0x0020, KDF 0x0001, AEAD 0x0002."""
    private, encapsulated = X25519PrivateKey.from_private_bytes(key), sealed[:32]
    kem, hpke = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    dh = private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    context = encapsulated + private.public_key().public_bytes_raw()
    shared = _labelled_expand(kem, _labelled_extract(kem, b"", b"eae_prk", dh), b"shared_secret", context, 32)
    psk_id, info_hash = (
        _labelled_extract(hpke, b"", b"psk_id_hash", b""),
        _labelled_extract(hpke, b"", b"info_hash", info),
    )
    secret = _labelled_extract(hpke, shared, b"secret", b"")
    aead_key = _labelled_expand(hpke, secret, b"key", b"\x00" + psk_id + info_hash, 32)
    nonce = _labelled_expand(hpke, secret, b"base_nonce", b"\x00" + psk_id + info_hash, 12)
    return AESGCM(aead_key).decrypt(nonce, sealed[32:], b"")


def test_a_sealed_box_is_hpke() -> None:
    """The formulas of RFC 9180, written out, open what `seal` made."""
    assert _open_by_the_book(KEY, seal(PUBLIC, b"secret file", b"occasion"), b"occasion") == b"secret file"


@pytest.mark.parametrize("plaintext", [b"", b"x", bytes(70000)])
def test_a_sealed_box_opens(plaintext: bytes) -> None:
    """Opening gives back what was sealed, whatever its length."""
    assert open_sealed(KEY, seal(PUBLIC, plaintext, b"i"), b"i") == plaintext


def test_sealing_twice_gives_different_boxes() -> None:
    """Nobody sees that two boxes hold the same."""
    assert seal(PUBLIC, b"same", b"i") != seal(PUBLIC, b"same", b"i")


def test_a_box_for_another_key_or_occasion_stays_shut() -> None:
    """Neither another key nor another occasion opens a box."""
    sealed = seal(PUBLIC, b"secret", b"i")

    for key, info in ((OTHER, b"i"), (KEY, b"j"), (KEY, b"")):
        with pytest.raises(SealError, match="not for this key and occasion, or changed"):
            open_sealed(key, sealed, info)


def test_every_byte_of_a_box_counts() -> None:
    """A box with any byte changed, cut or added stays shut."""
    sealed = seal(PUBLIC, b"s", b"i")
    changed = [sealed[:n] + bytes((sealed[n] ^ 1,)) + sealed[n + 1 :] for n in range(len(sealed))]

    for box in (*changed, sealed[:-1], sealed + b"\0"):
        with pytest.raises(SealError, match="not for this key and occasion, or changed"):
            open_sealed(KEY, box, b"i")


@pytest.mark.parametrize("size", [0, 47])
def test_a_box_shorter_than_its_frame_is_refused(size: int) -> None:
    """The encapsulated key and the tag alone have 48 bytes."""
    with pytest.raises(SealError, match=f"want at least 48 bytes, got {size}"):
        open_sealed(KEY, bytes(size), b"")


def test_nothing_is_encrypted_to_a_point_of_small_order() -> None:
    """A public key that anybody knows the shared secret of is refused, as is one of another length."""
    for encrypt in (
        lambda key: seal(key, b"x", b""),
        lambda key: encrypt_env(key, b"x", random=lambda size: KEY[:size]),
    ):
        with pytest.raises(KeyMalformedError, match="a point of small order"):
            encrypt(bytes(32))
        with pytest.raises(KeyMalformedError, match="want 32 bytes, got 31"):
            encrypt(bytes(31))


def test_private_keys_have_32_bytes() -> None:
    """Another length is malformed, not merely the wrong key."""
    with pytest.raises(KeyMalformedError, match="X25519 private key: want 32 bytes, got 31"):
        open_sealed(bytes(31), bytes(100), b"")
    with pytest.raises(KeyMalformedError, match="env key: want 32 bytes, got 33"):
        decrypt_env(bytes(33), bytes(100))


def test_encrypted_environments_are_golden(golden: Any) -> None:
    """With the same randomness the same bytes come out, and they decrypt."""
    for case in golden("env_encrypt")["cases"]:
        drawn = iter((bytes.fromhex(case["ephemeral_private"]), bytes.fromhex(case["iv"])))
        plaintext = bytes.fromhex(case["plaintext_hex"])
        blob = encrypt_env(bytes.fromhex(case["recipient_public"]), plaintext, random=lambda _, d=drawn: next(d))
        assert blob.hex() == case["encrypted_env_hex"]
        assert decrypt_env(bytes.fromhex(case["env_crypt_key"]), blob) == plaintext


def test_golden_refusals(golden: Any) -> None:
    """A flipped tag and a blob without room for one are refused."""
    for case in golden("env_encrypt")["negative"]:
        with pytest.raises(SealError, match=r"^encrypted environment: (not for this key, or changed|want at least 60)"):
            decrypt_env(bytes.fromhex(case["env_crypt_key"]), bytes.fromhex(case["encrypted_env_hex"]))


def test_every_byte_of_an_environment_counts() -> None:
    """A blob with any byte changed is refused, and so is one for another key."""
    blob = encrypt_env(PUBLIC, b"{}", random=lambda size: OTHER[:size])

    for changed in (blob[:n] + bytes((blob[n] ^ 1,)) + blob[n + 1 :] for n in range(len(blob))):
        with pytest.raises(SealError, match="not for this key, or changed"):
            decrypt_env(KEY, changed)
    with pytest.raises(SealError, match="not for this key, or changed"):
        decrypt_env(OTHER, blob)
    with pytest.raises(SealError, match="not for this key, or changed"):
        decrypt_env(KEY, bytes(32) + blob[32:])
