"""The kinds of the folder `guest` about keys: what an app gets, and what a machine without a KMS makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.key_provider import provider_report_data
from dstack.keys import derivation, signature_chain
from dstack.keys.data_signatures import parse_algorithm, public_key_of
from dstack.keys.pem import p256_scalar, spki_der
from dstack.keys.scalars import p256_from_scalar
from vectors.compare import Computation, Computed, Sections

_bytes = bytes.fromhex


def _purpose_key(app_key: str, path: str, purpose: str, algorithm: str) -> Computed:
    key = derivation.derive_purpose_key(_bytes(app_key), path)
    public_key = public_key_of(parse_algorithm(algorithm), key)
    message = signature_chain.purpose_message(purpose, public_key)
    signature = signature_chain.sign_purpose_key(_bytes(app_key), purpose, public_key)
    return {
        "key": key.hex(),
        "public_key": public_key.hex(),
        "signed_message": message.decode(),
        "message_keccak256": signature_chain.keccak256(message).hex(),
        "signer_compressed": signature_chain.recover(message, signature).hex(),
    }


def _signer(signed_message: str, signature: str) -> Computed:
    """Another's signature over the same message; its bytes may differ from ours, its signer may not."""
    return {"signer_compressed": signature_chain.recover(signed_message.encode(), _bytes(signature)).hex()}


def _path_key(seed: str, path: str) -> Computed:
    scalar = derivation.derive_p256(_bytes(seed), (path.encode(),))
    return {
        "p256_scalar": scalar.hex(),
        "pkcs8_der": derivation.p256_pkcs8(scalar).hex(),
        "spki_der": spki_der(p256_from_scalar(scalar)).hex(),
    }


def _dh_secret(root_pkcs8: str, context: Sequence[str]) -> Computed:
    root = serialization.load_der_private_key(_bytes(root_pkcs8), password=None)
    if not isinstance(root, ec.EllipticCurvePrivateKey):
        raise TypeError("want an elliptic curve key")
    secret = derivation.derive_dh_secret(p256_scalar(root), [each.encode() for each in context])
    return {"root_pkcs8_der": derivation.p256_pkcs8(p256_scalar(root)).hex(), "secret": secret.hex()}


def _seeded(seed: str) -> Computed:
    keys = derivation.app_keys_from_seed(_bytes(seed))
    app_key = derivation.derive_p256(_bytes(seed), (b"app-key",))
    disk_key = derivation.derive_p256(_bytes(seed), (b"app-disk-key",))
    return {
        "app_key_scalar": app_key.hex(),
        "app_key_spki": spki_der(p256_from_scalar(app_key)).hex(),
        "disk_key_pkcs8_der": derivation.p256_pkcs8(disk_key).hex(),
        "disk_crypt_key": keys.disk_crypt_key.hex(),
        "luks_passphrase_ascii": keys.disk_crypt_key.hex(),
        "k256_key": keys.k256_key.hex(),
        "env_crypt_key": keys.env_crypt_key.hex(),
    }


def _provided(sealed: str) -> Computed:
    return {"expected_provider_report_data": provider_report_data(_bytes(sealed)).hex()}


KINDS: Mapping[str, Sections] = {
    "guest/getkey": {
        "get_key": (
            Computation(("k256_app_key", "path", "purpose", "algorithm"), _purpose_key),
            Computation(("signed_message", "signature0_example"), _signer),
        ),
        "tappd_derive_key": (Computation(("seed", "path"), _path_key),),
        "derive_dh_secret": (Computation(("root_pkcs8_der", "context"), _dh_secret),),
    },
    # The enclave's side (`derive`), its framing and opening the box are of a guest with a local provider: not here yet.
    "guest/local_key_provider": {"sealed_box": (Computation(("sealed",), _provided),)},
    "guest/app_keys_from_seed": {"cases": (Computation(("seed",), _seeded),)},
}
