"""The kinds of the folder `guest` about keys: what an app gets, and what a machine without a KMS makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dstack.attestation.key_provider import provider_report_data
from dstack.attestation.report_data import app_key_report_data
from dstack.errors import MessageMalformedError
from dstack.keys import derivation, signature_chain
from dstack.keys.anonymous_box import open_anonymous
from dstack.keys.data_signatures import parse_algorithm, public_key_of
from dstack.keys.pem import p256_scalar, spki_der
from dstack.keys.scalars import p256_from_scalar
from dstack.simulator.key_provider import derive_sealing_key
from dstack.wire.key_provider import (
    HEAD_SIZE,
    frame,
    framed_size,
    parse_answer,
    parse_request,
    serialise_answer,
    serialise_request,
)
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
    app_key = derivation.app_ca_from_seed(_bytes(seed))
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


def _known_answer(app_key: str, path: str) -> Computed:
    """The key of a path, as the quotes that attest it name it."""
    key = derivation.derive_purpose_key(_bytes(app_key), path)
    return {
        f"report_data_{name}": _unpadded(app_key_report_data(name, public_key_of(parse_algorithm(name), key)))
        for name in ("ed25519", "secp256k1")
    }


def _unpadded(bound: bytes) -> str:
    return bound.rstrip(b"\0").decode()


def _provided(sealed: str) -> Computed:
    return {"expected_provider_report_data": provider_report_data(_bytes(sealed)).hex()}


def _opened(secret: str, sealed: str) -> Computed:
    public_key = X25519PrivateKey.from_private_bytes(_bytes(secret)).public_key()
    return {
        "recipient_public": public_key.public_bytes_raw().hex(),
        "plaintext": open_anonymous(_bytes(secret), _bytes(sealed)).hex(),
    }


def _sealing_key(enclave_key: str, measurements: str) -> Computed:
    return {"derived_key": derive_sealing_key(_bytes(enclave_key), _bytes(measurements)).hex()}


def _framed_request(framed: str) -> Computed:
    """A request, read and written again."""
    return {"request_hex": frame(serialise_request(parse_request(_content(framed)))).hex()}


def _framed_answer(framed: str) -> Computed:
    return {"response_hex": frame(serialise_answer(parse_answer(_content(framed)))).hex()}


def _content(framed: str) -> bytes:
    raw = _bytes(framed)
    content = raw[HEAD_SIZE:]
    if framed_size(raw[:HEAD_SIZE]) != len(content):
        raise MessageMalformedError(f"frame: want {framed_size(raw[:HEAD_SIZE])} bytes, got {len(content)}")
    return content


KINDS: Mapping[str, Sections] = {
    "guest/getkey": {
        "get_key": (
            Computation(("k256_app_key", "path", "purpose", "algorithm"), _purpose_key),
            Computation(("signed_message", "signature0_example"), _signer),
        ),
        "known_answers": (Computation(("k256_app_key", "path"), _known_answer),),
        "tappd_derive_key": (Computation(("seed", "path"), _path_key),),
        "derive_dh_secret": (Computation(("root_pkcs8_der", "context"), _dh_secret),),
    },
    "guest/local_key_provider": {
        "derive": (Computation(("sgx_sealing_key", "measurements_mrtd_rtmr0_3"), _sealing_key),),
        "sealed_box": (Computation(("sealed",), _provided), Computation(("recipient_secret", "sealed"), _opened)),
        "frames": (Computation(("request_hex",), _framed_request), Computation(("response_hex",), _framed_answer)),
    },
    "guest/app_keys_from_seed": {"cases": (Computation(("seed",), _seeded),)},
}
