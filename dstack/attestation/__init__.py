"""Is this evidence genuine, and what does it say? Pure: no network, no clock, no files.

In: bytes, collateral, trusted roots, a time, a policy. Out, one type after the other, none without the one before:

    bytes --parse_quote--> Quote --verify_quote--> VerifiedQuote --appraise--> Appraisal

`verify_quote` says who signed, `appraise` says whether what is measured is what was expected. Both raise at the first
numbered step that fails; the numbers are those of `docs/verification-steps.md`.
"""

from dstack.attestation.appraise import Appraisal, appraise
from dstack.attestation.collateral import Collateral, parse_collateral, serialise_collateral
from dstack.attestation.evidence import Evidence, parse_evidence, serialise_evidence, strip_evidence
from dstack.attestation.quote import Quote, parse_quote
from dstack.attestation.roots import INTEL_ROOTS, TrustedRoot, TrustedRoots, simulated_root
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import STRICT, VerificationPolicy
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.attestation.verify_collateral import VerifiedCollateral, verify_collateral

__all__ = [
    "INTEL_ROOTS",
    "STRICT",
    "Appraisal",
    "Collateral",
    "Evidence",
    "Quote",
    "TcbStatus",
    "TrustedRoot",
    "TrustedRoots",
    "VerificationPolicy",
    "VerifiedCollateral",
    "VerifiedQuote",
    "appraise",
    "parse_collateral",
    "parse_evidence",
    "parse_quote",
    "serialise_collateral",
    "serialise_evidence",
    "simulated_root",
    "strip_evidence",
    "verify_collateral",
    "verify_quote",
]
