"""Who vouches for a key."""

from typing import Any

import pytest

from dstack.errors import KeyMalformedError, SignatureUntrustedError
from dstack.keys import signature_chain as chain
from dstack.keys.derivation import RootKeys, derive_app_keys, derive_purpose_key
from dstack.keys.scalars import K256_ORDER, k256_public_key
from dstack.values import AppId


def _env_cases(golden: Any) -> Any:
    data = golden("env_pubkey")
    return bytes.fromhex(data["root_k256"]), data["cases"]


def test_env_key_signatures_are_golden(golden: Any) -> None:
    """Both forms of the root's word for an env key have exactly these bytes."""
    root, cases = _env_cases(golden)

    for case in cases:
        app_id, key = AppId.from_hex(case["app_id"]), bytes.fromhex(case["public_key"])
        assert chain.sign_env_public_key(root, app_id, key, None).hex() == case["signature"]
        assert chain.sign_env_public_key(root, app_id, key, case["timestamp"]).hex() == case["signature_v1"]


def test_an_env_key_verifies_only_as_it_was_signed(golden: Any) -> None:
    """Another app, key, time, form or root is refused."""
    root, (case, *_) = _env_cases(golden)
    signer, app_id, key, at = (
        k256_public_key(root),
        AppId.from_hex(case["app_id"]),
        bytes.fromhex(case["public_key"]),
        case["timestamp"],
    )
    signature = bytes.fromhex(case["signature_v1"])

    chain.verify_env_public_key(signer, app_id, key, at, signature)
    other_root = k256_public_key(bytes(31) + b"\x05")
    for changed in (
        (other_root, app_id, key, at),
        (signer, AppId(bytes(20)), key, at),
        (signer, app_id, bytes(32), at),
        (signer, app_id, key, at + 1),
        (signer, app_id, key, None),
    ):
        with pytest.raises(SignatureUntrustedError, match=r"^(env key: want a signature by|signature: no key)"):
            chain.verify_env_public_key(*changed, signature)


def test_a_whole_chain_is_golden(golden: Any) -> None:
    """Purpose keys and both signatures of their chain have exactly these bytes, and the chain verifies."""
    data = golden("signature_chain")

    for case in data["cases"]:
        app_key, key = bytes.fromhex(case["app_k256_key"]), bytes.fromhex(case["derived_pubkey"])
        assert derive_purpose_key(app_key, case["path"]).hex() == case["derived_key"]
        signatures = [chain.sign_purpose_key(app_key, case["purpose"], key), bytes.fromhex(case["sig_app"])]
        assert signatures[0].hex() == case["sig_purpose"]
        app_public_key = chain.verify_signature_chain(
            bytes.fromhex(case["root_pubkey"]),
            AppId.from_hex(case["app_id"]),
            purpose=case["purpose"],
            public_key=key,
            chain=signatures,
        )
        assert app_public_key.hex() == case["app_pubkey_recovered"]


def test_a_chain_for_something_else_is_refused(roots: RootKeys, app_id: AppId) -> None:
    """Another root, app, purpose or key, and a chain in the wrong order, do not verify."""
    keys = derive_app_keys(roots, app_id, None)
    key = k256_public_key(derive_purpose_key(keys.k256_key, "p"))
    signatures = (chain.sign_purpose_key(keys.k256_key, "use", key), keys.k256_signature)
    root = k256_public_key(roots.k256)

    def verify(root: bytes, app: AppId, purpose: str, key: bytes, signatures: Any) -> bytes:
        return chain.verify_signature_chain(root, app, purpose=purpose, public_key=key, chain=signatures)

    assert verify(root, app_id, "use", key, signatures) == k256_public_key(keys.k256_key)
    for changed in (
        (k256_public_key(bytes(31) + b"\x05"), app_id, "use", key, signatures),
        (root, AppId(bytes(20)), "use", key, signatures),
        (root, app_id, "other", key, signatures),
        (root, app_id, "use", root, signatures),
        (root, app_id, "use", key, signatures[::-1]),
    ):
        with pytest.raises(SignatureUntrustedError, match=r"^(app key: want a signature by|signature: no key)"):
            verify(*changed)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_chain_has_two_signatures(roots: RootKeys, app_id: AppId, count: int) -> None:
    """Fewer and more are refused before anything is recovered."""
    with pytest.raises(KeyMalformedError, match=f"want 2 signatures, got {count}"):
        chain.verify_signature_chain(
            k256_public_key(roots.k256), app_id, purpose="", public_key=bytes(32), chain=[bytes(65)] * count
        )


def test_a_signature_has_one_form(roots: RootKeys) -> None:
    """Other lengths, Ethereum's recovery ids and the high s value are refused, though a key could be recovered."""
    signature = chain.sign_recoverable(roots.k256, b"message")
    high = (K256_ORDER - int.from_bytes(signature[32:64], "big")).to_bytes(32, "big")

    for malformed, named in (
        (signature[:64], "want 65 bytes, got 64"),
        (signature + b"\0", "want 65 bytes, got 66"),
        (signature[:64] + b"\x1b", "want recovery id 0 or 1, got 27"),
        (signature[:32] + high + bytes((1 - signature[64],)), "want the low of its two s values"),
    ):
        with pytest.raises(KeyMalformedError, match=named):
            chain.recover(b"message", malformed)


@pytest.mark.parametrize("r", [bytes(32), b"\xff" * 32])
def test_a_signature_that_no_key_can_have_made_is_refused(r: bytes) -> None:
    """R outside its range gives no key."""
    with pytest.raises(SignatureUntrustedError, match="no key can have made it"):
        chain.recover(b"message", r + bytes(31) + b"\x01\x00")


def test_recovery_gives_the_signer(roots: RootKeys) -> None:
    """The recovered key is the signer's; over another message it is not."""
    signature = chain.sign_recoverable(roots.k256, b"message")

    assert chain.recover(b"message", signature) == k256_public_key(roots.k256)
    assert chain.recover(b"massage", signature) != k256_public_key(roots.k256)


def test_keys_of_other_lengths_are_not_signed(roots: RootKeys, app_id: AppId) -> None:
    """The messages have no lengths in them, so each key must have its one length."""
    for message, named in (
        (lambda: chain.app_key_message(app_id, bytes(32)), "app key: want 33 bytes, got 32"),
        (lambda: chain.env_public_key_message(app_id, bytes(33), None), "env key: want 32 bytes, got 33"),
        (lambda: chain.purpose_message("p", bytes(34)), "purpose key: want 32 or 33 bytes, got 34"),
        (lambda: chain.verify_app_key(bytes(32), app_id, *_signed(roots, app_id)), "root key: want 33 bytes, got 32"),
    ):
        with pytest.raises(KeyMalformedError, match=named):
            message()


@pytest.mark.parametrize("timestamp", [-1, 1 << 64])
def test_a_timestamp_has_eight_bytes(app_id: AppId, timestamp: int) -> None:
    """What 64 bits do not hold is refused."""
    with pytest.raises(KeyMalformedError, match="want an unsigned 64-bit number"):
        chain.env_public_key_message(app_id, bytes(32), timestamp)


def _signed(roots: RootKeys, app_id: AppId) -> tuple[bytes, bytes]:
    key = k256_public_key(bytes(31) + b"\x03")
    return key, chain.sign_app_key(roots.k256, app_id, key)
