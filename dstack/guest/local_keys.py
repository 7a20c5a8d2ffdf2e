"""Keys from a local key provider, an SGX enclave on the guest's own host, without any KMS (guest.md 5.5).

(1) Draw an X25519 key, and quote it. (2) The provider derives a key from this machine's registers, seals it to that
key and quotes the box. (3) Establish that a listed enclave made the box. (4) Open it.

The host carries the messages. It can withhold the key, and it can do nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from dstack.attestation.key_provider import verify_provided_key
from dstack.attestation.quote import parse_quote
from dstack.attestation.report_data import padded_report_data
from dstack.errors import PeerRefusedError, QuoteMalformedError, SealError
from dstack.guest.kms_client import KmsTrust
from dstack.guest.platform import Platform
from dstack.keys.anonymous_box import open_anonymous
from dstack.values import Digest32
from dstack.wire.key_provider import SealingKeyAnswer, SealingKeyRequest

SEED_SIZE = 32


@dataclass(frozen=True, slots=True)
class SealedSeed:
    """A seed that the same enclave gives to the same machine at every boot.

    Attributes:
        seed: 32 bytes.
        provider_id: MRENCLAVE of the provider.
    """

    seed: bytes = field(repr=False)
    provider_id: Digest32


def request_seed(
    ask: Callable[[SealingKeyRequest], SealingKeyAnswer],
    platform: Platform,
    *,
    trust: KmsTrust,
    at: datetime,
    random: Callable[[int], bytes],
) -> SealedSeed:
    """Ask the provider for this machine's seed.

    Args:
        ask: Carries the question, such as `KeyProviderClient.ask`.
        platform: The machine; its RTMR3 stands at `boot-mr-done`.
        trust: What the provider's quote must pass; its policy lists the enclaves that may provide keys.
        at: Now.
        random: So many bytes nobody can predict.

    Raises:
        PeerUnavailableError: The provider did not answer.
        PeerRefusedError: It answered no quote, or a box that is not for this key or holds no seed.
        QuoteUntrustedError: Its quote did not verify, or is of an enclave that is not listed or can be debugged.
        AppraisalError: Its quote is a TD's, or is bound to another box.
        CollateralUnavailableError: There is no usable collateral for its platform.
    """
    # (1)
    secret = random(SEED_SIZE)
    public_key = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    quote = platform.quote(padded_report_data(public_key))

    # (2)
    answer = ask(SealingKeyRequest(quote))

    # (3)
    try:
        claimed = parse_quote(answer.provider_quote)
    except QuoteMalformedError as exc:
        raise PeerRefusedError(f"key provider: provider_quote: {exc}") from exc
    provided = verify_provided_key(
        answer.provider_quote,
        answer.encrypted_key,
        trust.collateral.collateral_for(claimed),
        roots=trust.roots,
        at=at,
        policy=trust.policy,
    )

    # (4)
    try:
        seed = open_anonymous(secret, provided.encrypted_key)
    except SealError as exc:
        raise PeerRefusedError(f"key provider: encrypted_key: {exc}") from exc
    if len(seed) != SEED_SIZE:
        raise PeerRefusedError(f"key provider: encrypted_key: want {SEED_SIZE} bytes in it, got {len(seed)}")
    return SealedSeed(seed, provided.provider_id)
