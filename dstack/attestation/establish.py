"""Items 3 to 11 of a quote: everything that is the same for each quote of a platform, and therefore remembered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import dcap_qvl

from dstack.attestation.checklist import Ledger
from dstack.attestation.collateral import Collateral, serialise_collateral
from dstack.attestation.content_cache import ContentCache, content_key
from dstack.attestation.platform_checks import CheckedPlatform, check_platform, trusted_chain
from dstack.attestation.quote import Quote
from dstack.attestation.roots import TrustedRoot, TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify_collateral import CollateralParts, VerifiedCollateral, check_collateral
from dstack.errors import QuoteUntrustedError


@dataclass(frozen=True, slots=True)
class Question:
    """What a quote is verified against."""

    collateral: Collateral
    roots: TrustedRoots
    at: datetime
    policy: VerificationPolicy
    cache: ContentCache | None


@dataclass(frozen=True, slots=True)
class KnownCollateral:
    """Collateral that was verified, and the same statements as the quote library takes them."""

    verified: VerifiedCollateral
    library_form: dcap_qvl.QuoteCollateralV3


@dataclass(frozen=True, slots=True)
class Established:
    """A platform that was verified under verified collateral. Made by `establish` alone; `key` names all of it."""

    collateral: KnownCollateral
    platform: CheckedPlatform
    key: bytes

    @property
    def parts(self) -> CollateralParts:
        """The collateral, parsed."""
        return self.collateral.verified.parts


def establish(quote: Quote, question: Question, ledger: Ledger) -> Established | None:
    """Check items 3 to 11, and the attestation key of 12; None only if *ledger* has written down why.

    A platform with a failed check may be returned too, where *ledger* does not raise: whoever concludes something looks
    there.
    """
    key, cache, at = _key(quote, question), question.cache, question.at
    found = cache.get(key, Established, at) if cache is not None else None
    if found is not None:
        for item in range(3, 12):
            ledger.passed(item, "checked before, unchanged and still valid")
        return found
    # (3) The chain ends in a configured root.
    trusted = ledger.run(3, lambda: trusted_chain(quote, question.roots), seen=lambda seen: _root_words(seen[0]))
    if trusted is None:
        ledger.skip(range(4, 12), "without a trusted root nothing can be checked")
        return None
    root, chain = trusted
    # (4, 5) Revocation lists and documents are genuine and current.
    collateral = _known_collateral(question, root, ledger)
    if collateral is None:
        ledger.skip(range(6, 12), "without genuine, current collateral nothing can be checked")
        return None
    # (6-11) The platform is genuine, and vouches for its quoting enclave.
    platform = check_platform(quote, chain, collateral.verified, at, ledger)
    if platform is None:
        return None
    established = Established(collateral, platform, key)
    if cache is not None and not ledger.failed(*range(3, 13)):
        cache.put(key, established, platform.period)
    return established


def _known_collateral(question: Question, root: TrustedRoot, ledger: Ledger) -> KnownCollateral | None:
    cache, collateral, at = question.cache, question.collateral, question.at
    roots = TrustedRoots((root,))
    key = content_key(b"collateral", collateral.digest, roots.digest)
    found = cache.get(key, KnownCollateral, at) if cache is not None else None
    if found is not None:
        for item in (4, 5):
            ledger.passed(item, "checked before, unchanged and still in force")
        return found
    verified = check_collateral(collateral, roots=roots, at=at, ledger=ledger)
    if verified is None:
        return None
    form = ledger.run(13, lambda: _library_form(collateral), seen="read by both verifiers", name="collateral")
    if form is None:
        return None
    known = KnownCollateral(verified, form)
    if cache is not None:
        cache.put(key, known, verified.period)
    return known


def _library_form(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    try:
        return dcap_qvl.QuoteCollateralV3.from_json(serialise_collateral(collateral))
    except (ValueError, TypeError) as exc:
        raise QuoteUntrustedError(13, f"quote library: it cannot read the collateral: {exc}") from exc


def _key(quote: Quote, question: Question) -> bytes:
    """Names everything that items 3 to 11 look at."""
    signature = quote.signature
    return content_key(
        b"platform",
        question.collateral.digest,
        question.roots.digest,
        quote.tee_type.to_bytes(4, "big"),
        signature.attestation_key,
        signature.certification_digest,
    )


def _root_words(root: TrustedRoot) -> str:
    simulated = "SIMULATED, " if root.simulated else ""
    return f"{simulated}{root.names.root}, SHA-256 {root.fingerprint}"
