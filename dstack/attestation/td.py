"""What a TD or enclave may be: steps 14 to 16 of `docs/verification-steps.md`.

Each check returns the relaxations that it needed, because the outcome holds no longer than they do.
"""

from __future__ import annotations

from datetime import datetime

from dstack.attestation.qe import is_debug_enclave
from dstack.attestation.quote import EnclaveReport, TdReport
from dstack.attestation.verification_policy import (
    AllowLegacyModule,
    AllowTdAttribute,
    Relaxation,
    VerificationPolicy,
)
from dstack.errors import QuoteUntrustedError

_DEBUG_BITS = 0xFF
_SEPT_VE_DISABLE = 28
_MIGRATABLE = 29
_X87_SSE = 0b11

_Needed = tuple[Relaxation, ...]
"""The relaxations of the policy without which the check would have failed."""


def check_attributes(report: TdReport, policy: VerificationPolicy, at: datetime) -> _Needed:
    """Step 14: the TD cannot be debugged or migrated, and has no attribute that the policy does not know.

    Raises:
        QuoteUntrustedError: A bit that must be set is clear, or one that must be clear is set.
    """
    attributes = int.from_bytes(report.td_attributes, "little")
    if attributes & _DEBUG_BITS:
        raise QuoteUntrustedError(14, f"TD attributes {attributes:#018x}: the TD can be debugged (bits 0-7)")
    if not attributes >> _SEPT_VE_DISABLE & 1:
        raise QuoteUntrustedError(14, f"TD attributes {attributes:#018x}: want SEPT_VE_DISABLE (bit 28) set")
    if attributes >> _MIGRATABLE & 1:
        raise QuoteUntrustedError(14, f"TD attributes {attributes:#018x}: the TD can be migrated (bit 29)")
    if attributes == 1 << _SEPT_VE_DISABLE:
        return ()
    relaxed = [each for each in policy.applying(at) if isinstance(each, AllowTdAttribute)]
    allowed = sum(1 << bit for bit in {_SEPT_VE_DISABLE, *(each.bit for each in relaxed)})
    if attributes & ~allowed:
        raise QuoteUntrustedError(14, f"TD attributes {attributes:#018x}: the policy allows {allowed:#018x}")
    return tuple(each for each in relaxed if attributes >> each.bit & 1)


def check_module(report: TdReport, policy: VerificationPolicy, at: datetime) -> _Needed:
    """Step 15: Intel's TDX module, no service TD, and a sane set of CPU features.

    Raises:
        QuoteUntrustedError: It is another module, has a service TD, or other features.
    """
    if any(report.mr_signer_seam) or any(report.seam_attributes):
        raise QuoteUntrustedError(15, "TDX module: want zero MRSIGNERSEAM and SEAMATTRIBUTES")
    if policy.mr_seams is not None and report.mr_seam not in policy.mr_seams:
        raise QuoteUntrustedError(15, f"TDX module: the policy does not list MRSEAM {report.mr_seam.hex()}")
    xfam = int.from_bytes(report.xfam, "little")
    if xfam & _X87_SSE != _X87_SSE or (policy.xfam is not None and xfam & ~policy.xfam):
        raise QuoteUntrustedError(15, f"XFAM {xfam:#018x}: want x87 and SSE, and nothing the policy does not allow")
    if report.mr_service_td is not None and any(report.mr_service_td):
        raise QuoteUntrustedError(15, f"service TD: want none, got {report.mr_service_td.hex()}")
    return _legacy_module(report, policy, at)


def check_enclave(report: EnclaveReport, policy: VerificationPolicy) -> _Needed:
    """Step 16: an SGX enclave that cannot be debugged and that the policy lists.

    Raises:
        QuoteUntrustedError: It can be debugged, or is not listed.
    """
    if is_debug_enclave(report):
        raise QuoteUntrustedError(16, "enclave: runs in debug mode")
    if report.mr_enclave not in policy.mr_enclaves:
        raise QuoteUntrustedError(16, f"enclave: the policy does not list MRENCLAVE {report.mr_enclave.hex()}")
    return ()


def _legacy_module(report: TdReport, policy: VerificationPolicy, at: datetime) -> _Needed:
    versions = {svn[1] for svn in (report.tee_tcb_svn, report.tee_tcb_svn2) if svn is not None}
    if 0 not in versions:
        return ()
    relaxed = tuple(each for each in policy.applying(at) if isinstance(each, AllowLegacyModule))
    if not relaxed:
        raise QuoteUntrustedError(15, "TDX module: version 0 has no module identity")
    return relaxed
