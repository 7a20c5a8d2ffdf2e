"""The local key provider: an SGX enclave on the same host that gives a TD its sealing key (quote-verification.md 7).

The TD sends its quote, which carries an X25519 public key. The provider answers with a key encrypted to that, and with
an SGX quote that carries the SHA-256 of the encrypted key. Its MRENCLAVE is then the id of the key provider.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from dstack.attestation.collateral import Collateral
from dstack.attestation.quote import EnclaveReport
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import AppraisalError
from dstack.values import Digest32


@dataclass(frozen=True, slots=True)
class ProvidedKey:
    """An encrypted key and who vouches for it. Made by `verify_provided_key` alone.

    Attributes:
        encrypted_key: Still sealed; whoever holds the X25519 key opens it.
        provider_id: MRENCLAVE of the provider, which the policy lists.
        verified: Its quote.
    """

    encrypted_key: bytes
    provider_id: Digest32
    verified: VerifiedQuote


def verify_provided_key(
    quote: bytes,
    encrypted_key: bytes,
    collateral: Collateral,
    *,
    roots: TrustedRoots,
    at: datetime,
    policy: VerificationPolicy,
) -> ProvidedKey:
    """Establish that a listed enclave, not in debug mode, gave this key.

    Args:
        quote: The provider's, of version 3.
        encrypted_key: As the provider sent it.
        collateral: About SGX on that platform; TDX collateral is refused.
        roots: The only certificates allowed to end a chain.
        at: When everything must be valid.
        policy: Lists the enclaves that may provide keys.

    Raises:
        QuoteMalformedError: *quote* is none.
        QuoteUntrustedError: A step failed; 16 if the enclave is not listed or can be debugged.
        AppraisalError: It is a TD's quote, or is bound to another key.
    """
    verified = verify_quote(quote, collateral, roots=roots, at=at, policy=policy)
    body = verified.quote.body
    if not isinstance(body, EnclaveReport):
        raise AppraisalError("key provider: want the quote of an SGX enclave, got that of a TD")
    bound = provider_report_data(encrypted_key)
    if not hmac.compare_digest(body.report_data, bound):
        raise AppraisalError(f"key provider: want report data {bound.hex()}, got {body.report_data.hex()}")
    return ProvidedKey(encrypted_key, body.mr_enclave, verified)


def provider_report_data(encrypted_key: bytes) -> bytes:
    """The 64 bytes that the provider's quote must carry."""
    return sha256(encrypted_key).digest() + bytes(32)
