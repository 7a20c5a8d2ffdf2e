"""Report data: 64 bytes that bind a quote to a purpose and to a key (guest.md 6.4, kms.md 4.3 and 3.7)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping

from dstack.errors import InputError
from dstack.values import ReportData

APP_DATA = "app-data"
RATLS_CERT = "ratls-cert"
RAW = "raw"
_DEFAULT_HASH = "sha512"

_APP_KEY_LABELS = {"ed25519": (b"dip1::ed25519-pk:", 32), "secp256k1": (b"dip1::secp256k1c-pk:", 33)}

# Upstream's spelling; the misspelling is part of the format.
_BOOTSTRAP_PREFIX = b"dstack-kms-genereted-keys-v1:"


def _keccak(bits: int) -> Callable[[bytes], bytes]:
    def digest(content: bytes) -> bytes:
        # Slow to load, and seldom asked for.
        from Crypto.Hash import keccak

        return keccak.new(digest_bits=bits, data=content).digest()

    return digest


def _hashlib(name: str) -> Callable[[bytes], bytes]:
    return lambda content: hashlib.new(name, content).digest()


_HASHES: Mapping[str, Callable[[bytes], bytes]] = {
    "sha256": _hashlib("sha256"),
    "sha384": _hashlib("sha384"),
    "sha512": _hashlib("sha512"),
    "sha3-256": _hashlib("sha3_256"),
    "sha3-384": _hashlib("sha3_384"),
    "sha3-512": _hashlib("sha3_512"),
    "keccak256": _keccak(256),
    "keccak384": _keccak(384),
    "keccak512": _keccak(512),
}


def report_data(tag: str, content: bytes, hash_name: str = _DEFAULT_HASH) -> ReportData:
    """Bind *content* under *tag*: hash(tag ":" content), zero-padded to 64 bytes.

    Args:
        tag: The purpose, such as `app-data`; not used when *hash_name* is `raw`.
        content: What is bound. For `raw` it is the report data itself and must be 64 bytes.
        hash_name: sha256, sha384, sha512, sha3-*, keccak256/384/512, or raw; empty for the default.

    Raises:
        InputError: An unknown hash name, or raw content that is not 64 bytes.
    """
    if hash_name == RAW:
        return ReportData(content)
    # Requests leave the name empty for the default (guest.md 6.4).
    hash_name = hash_name or _DEFAULT_HASH
    if hash_name not in _HASHES:
        raise InputError(f"report data: want one of {', '.join(_HASHES)} or raw, got {hash_name[:40]!r}")
    return padded_report_data(_HASHES[hash_name](tag.encode() + b":" + content))


def padded_report_data(content: bytes) -> ReportData:
    """*content* followed by zeros, unhashed: what the guest agent's GetQuote does.

    Raises:
        InputError: *content* is longer than 64 bytes.
    """
    return ReportData(content.ljust(ReportData.SIZE, b"\0"))


def app_key_report_data(algorithm: str, public_key: bytes) -> ReportData:
    """Bind a key that an app signs with: what the worker's GetAttestationForAppKey quotes (guest.md 4.5).

    Args:
        algorithm: `ed25519` or `secp256k1`.
        public_key: 32 bytes, or the compressed 33.

    Raises:
        InputError: Another algorithm, or a key of another length.
    """
    label, size = _APP_KEY_LABELS.get(algorithm, (b"", 0))
    if not label:
        raise InputError(f"app key: want one of {', '.join(_APP_KEY_LABELS)}, got {algorithm[:40]!r}")
    if len(public_key) != size:
        raise InputError(f"app key: want {size} bytes, got {len(public_key)}")
    return padded_report_data(label + base64.urlsafe_b64encode(public_key).rstrip(b"="))


def ratls_report_data(spki: bytes) -> ReportData:
    """Bind the public key (SubjectPublicKeyInfo DER) of an RA-TLS certificate."""
    return report_data(RATLS_CERT, spki)


def bootstrap_report_data(ca_spki: bytes, k256_pubkey: bytes) -> ReportData:
    """Bind the two root public keys a KMS generates at its first start (kms.md 3.7)."""
    return padded_report_data(_HASHES["keccak256"](bootstrap_message(ca_spki, k256_pubkey)))


def bootstrap_message(ca_spki: bytes, k256_pubkey: bytes) -> bytes:
    """What `bootstrap_report_data` hashes."""
    return _BOOTSTRAP_PREFIX + ca_spki.hex().encode() + b";" + k256_pubkey.hex().encode() + b";"
