"""Signatures over an app's data."""

from typing import Any

import pytest

from dstack.errors import KeyMalformedError, SignatureUntrustedError
from dstack.keys.data_signatures import Algorithm, parse_algorithm, public_key_of, sign_data, verify_data
from dstack.keys.scalars import K256_ORDER

KEY = bytes(31) + b"\x11"
DIGEST = bytes(range(32))


def test_data_signatures_are_golden(golden: Any) -> None:
    """Both algorithms, and the prehashed one, give exactly these bytes."""
    for case in golden("signature_chain")["cases"]:
        key, algorithm = bytes.fromhex(case["derived_key"]), parse_algorithm(case["algorithm"])
        assert public_key_of(algorithm, key).hex() == case["derived_pubkey"]
        assert sign_data(algorithm, key, bytes.fromhex(case["data"])).hex() == case["data_signature"]
        if "prehashed" in case:
            digest = bytes.fromhex(case["prehashed"]["digest"])
            signature = sign_data(Algorithm.SECP256K1_PREHASHED, key, digest)
            assert signature.hex() == case["prehashed"]["signature"]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_only_the_signed_data_verifies(algorithm: Algorithm) -> None:
    """Other data, another key and a changed signature are refused."""
    signature = sign_data(algorithm, KEY, DIGEST)
    key, other = public_key_of(algorithm, KEY), public_key_of(algorithm, bytes(31) + b"\x12")

    verify_data(algorithm, key, DIGEST, signature)
    changed = bytes((signature[0] ^ 1,)) + signature[1:]
    for given in ((key, DIGEST[::-1], signature), (other, DIGEST, signature), (key, DIGEST, changed)):
        with pytest.raises(SignatureUntrustedError, match="data signature: not by this"):
            verify_data(algorithm, *given)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(algorithm: Algorithm, size: int) -> None:
    """Data signatures have 64 bytes."""
    with pytest.raises(SignatureUntrustedError, match="data signature: "):
        verify_data(algorithm, public_key_of(algorithm, KEY), DIGEST, bytes(size))


def test_the_high_s_value_is_refused() -> None:
    """Of the two forms of a secp256k1 signature only the low one verifies."""
    signature = sign_data(Algorithm.SECP256K1, KEY, DIGEST)
    high = signature[:32] + (K256_ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")

    with pytest.raises(SignatureUntrustedError, match="not by this secp256k1 key"):
        verify_data(Algorithm.SECP256K1, public_key_of(Algorithm.SECP256K1, KEY), DIGEST, high)


@pytest.mark.parametrize("size", [31, 33])
def test_a_prehashed_digest_has_32_bytes(size: int) -> None:
    """Signing and verifying refuse with upstream's text."""
    text = f"Pre-hashed signing requires a 32-byte digest, but received {size} bytes"

    with pytest.raises(KeyMalformedError, match=text):
        sign_data(Algorithm.SECP256K1_PREHASHED, KEY, bytes(size))
    with pytest.raises(KeyMalformedError, match=text):
        verify_data(Algorithm.SECP256K1_PREHASHED, public_key_of(Algorithm.SECP256K1, KEY), bytes(size), bytes(64))


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.SECP256K1])
def test_what_is_no_public_key_is_named(algorithm: Algorithm) -> None:
    """A public key of the wrong length is malformed, which is not the same as untrusted."""
    with pytest.raises(KeyMalformedError, match="public key: "):
        verify_data(algorithm, bytes(31), DIGEST, bytes(64))


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("", Algorithm.SECP256K1),
        ("k256", Algorithm.SECP256K1),
        ("secp256k1", Algorithm.SECP256K1),
        ("ed25519", Algorithm.ED25519),
        ("secp256k1_prehashed", Algorithm.SECP256K1_PREHASHED),
    ],
)
def test_algorithms_have_names(name: str, algorithm: Algorithm) -> None:
    """Names on the network, with their aliases."""
    assert parse_algorithm(name) is algorithm


def test_other_algorithms_are_refused() -> None:
    """An unknown name is refused with upstream's text."""
    with pytest.raises(KeyMalformedError, match=r"^Unsupported algorithm$"):
        parse_algorithm("rsa")
