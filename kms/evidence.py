"""Evidence to boot info: collateral, verification, appraisal, in that order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dstack.attestation.appraise import Appraisal, appraise
from dstack.attestation.collateral import Collateral
from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import parse_quote
from dstack.attestation.ratls import bound_evidence
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import (
    CollateralMalformedError,
    CollateralUnavailableError,
    ImageRefusedError,
    ImageUnavailableError,
    KeyReleaseDeniedError,
    MeasurementMalformedError,
)
from dstack.measurement.acpi import AcpiDigests
from dstack.measurement.machine import BootDigests
from dstack.measurement.vm_config import VmConfig
from dstack.transport.collateral import CollateralSource
from dstack.transport.verification_pool import VerificationPool
from dstack.values import ReportData
from kms.decisions import EVIDENCE_MISSING

# Upstream's words (kms.md 2.2).
IMAGE_NOT_VERIFIED = "Failed to verify os image hash"


class QuoteProvider(Protocol):
    """Gives evidence about the machine this service runs in."""

    def evidence(self, report_data: ReportData) -> Evidence:
        """Evidence that carries *report_data*.

        Raises:
            AgentUnavailableError: There is none to be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class EvidenceVerifier:
    """Turns evidence into appraisals, by what this KMS was configured to accept.

    Attributes:
        roots: What may end a chain of certificates.
        policy: Which platforms are good enough.
        collateral: Where statements about platforms come from.
        clock: When it is.
        acpi: Says which ACPI tables a machine has. None takes the digests that its own log names, which verifies
            nothing of them.
        image: Measures the files of images whose machines carry no measurement document; None where nobody has them.
        pool: Verifies quotes in worker processes, which have the same roots and policy; None verifies them here.
    """

    roots: TrustedRoots
    policy: VerificationPolicy
    collateral: CollateralSource
    clock: Callable[[], datetime]
    acpi: Callable[[VmConfig], AcpiDigests] | None
    image: Callable[[VmConfig], BootDigests] | None = None
    pool: VerificationPool | None = None

    def appraise(self, evidence: Evidence, *, bound_to: ReportData, vm_config: str = "") -> Appraisal:
        """Verify *evidence* now, and compare it with the image it names.

        Args:
            evidence: As received.
            bound_to: The report data its quote must carry.
            vm_config: Replaces the config in *evidence* unless empty.

        Raises:
            InputError: The evidence is not of its form.
            RefusedError: It is not genuine, or not what was wanted.
            CollateralUnavailableError: There is no usable collateral for its platform.
        """
        quote = parse_quote(evidence.quote)
        try:
            collateral = self.collateral.collateral_for(quote)
        except CollateralMalformedError as exc:
            # What is kept on our side says nothing about the caller.
            raise CollateralUnavailableError(f"collateral cannot be used: {exc}") from exc
        verified = self._verify(evidence.quote, collateral)
        try:
            return appraise(
                evidence, verified, expected_report_data=bound_to, vm_config=vm_config, image=self.image, acpi=self.acpi
            )
        except (ImageRefusedError, MeasurementMalformedError, ImageUnavailableError) as exc:
            raise type(exc)(f"{IMAGE_NOT_VERIFIED}: {exc}") from exc

    def _verify(self, quote: bytes, collateral: Collateral) -> VerifiedQuote:
        at = self.clock()
        if self.pool is not None:
            return self.pool.verify(quote, collateral, at=at)
        return verify_quote(quote, collateral, roots=self.roots, at=at, policy=self.policy)

    def appraise_caller(self, certificate_der: bytes | None, *, vm_config: str) -> Appraisal:
        """Appraise the caller by the certificate of its connection, to whose key the evidence must be bound.

        Raises:
            KeyReleaseDeniedError: It presented no certificate, or one without evidence.
            InputError: As `appraise`.
            RefusedError: As `appraise`.
            CollateralUnavailableError: As `appraise`.
        """
        found = bound_evidence(certificate_der) if certificate_der else None
        if found is None:
            raise KeyReleaseDeniedError(EVIDENCE_MISSING, "No attestation provided")
        evidence, bound_to = found
        return self.appraise(evidence, bound_to=bound_to, vm_config=vm_config)
