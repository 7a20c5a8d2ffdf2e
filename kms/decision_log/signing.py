"""Who signs the log: a key derived from the k256 root, which vouches for it. So one public key verifies every log."""

from __future__ import annotations

from dataclasses import dataclass, field

import coincurve

from dstack.keys.derivation import kdf
from dstack.keys.scalars import k256_from_scalar
from dstack.keys.signature_chain import keccak256, recover, sign_recoverable
from dstack.values import Digest32

_CONTEXT = b"dstack-kms-decision-log"
_VOUCHER_TAG = b"dstack-kms-decision-log:"


@dataclass(frozen=True, slots=True)
class DecisionSigner:
    """Signs digests of entries. Does not show its key.

    Attributes:
        public_key: 33 bytes, compressed.
        voucher: 65 bytes: the root's signature over it.
    """

    _key: coincurve.PrivateKey = field(repr=False)
    public_key: bytes
    voucher: bytes

    @classmethod
    def derive(cls, root_k256: bytes) -> DecisionSigner:
        """The log's key of a KMS, the same for every KMS with this root.

        Raises:
            KeyMalformedError: *root_k256* is not a secp256k1 scalar.
        """
        key = k256_from_scalar(kdf(root_k256, [_CONTEXT]))
        public_key = key.public_key.format(compressed=True)
        return cls(key, public_key, sign_recoverable(root_k256, _VOUCHER_TAG + public_key))

    def sign(self, digest: Digest32) -> bytes:
        """65 bytes over *digest*."""
        return self._key.sign_recoverable(digest, hasher=keccak256)


def signer_of(digest: Digest32, signature: bytes) -> bytes:
    """The public key that signed an entry.

    Raises:
        KeyMalformedError: The signature is not of its form.
        SignatureUntrustedError: No key can have made it.
    """
    return recover(digest, signature)


def root_behind(public_key: bytes, voucher: bytes) -> bytes:
    """The k256 public key of the root that vouches for the key of a log.

    Raises:
        KeyMalformedError: The voucher is not of its form.
        SignatureUntrustedError: No key can have made it.
    """
    return recover(_VOUCHER_TAG + public_key, voucher)
