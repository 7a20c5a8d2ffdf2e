"""Judging the other side of a handover: verify its quote, appraise its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from dstack.attestation.appraise import Appraisal, appraise
from dstack.attestation.evidence import Evidence, parse_evidence
from dstack.attestation.quote import parse_quote
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import verify_quote
from dstack.errors import CollateralMalformedError, CollateralUnavailableError, HandoverRefusedError
from dstack.policy import BootInfo, boot_info
from dstack.values import AppId, ReportData
from replicator.acpi_tables import GiveTables

if TYPE_CHECKING:
    from dstack.transport.collateral import CollateralSource


class QuoteProvider(Protocol):
    """Has this machine quoted."""

    def evidence(self, report_data: ReportData) -> Evidence:
        """Fresh evidence that carries *report_data*."""
        ...


@dataclass(frozen=True, slots=True)
class EvidenceVerifier:
    """What this node was told to trust, applied to one evidence after the other.

    Attributes:
        roots: What may end a chain of certificates.
        policy: Which platforms are good enough.
        collateral: Where statements about platforms come from.
        acpi: Says which ACPI tables a machine has. None takes the digests that its own log names.
    """

    roots: TrustedRoots
    policy: VerificationPolicy
    collateral: CollateralSource
    acpi: GiveTables | None

    def appraise(self, evidence: Evidence, *, expected: ReportData, at: datetime) -> Appraisal:
        """Verify and appraise evidence that must carry *expected*. Does not ask the chain.

        Raises:
            InputError: The evidence is malformed.
            QuoteUntrustedError: A verification step failed.
            AppraisalError: It is genuine, but not for *expected*, or not what the OS image measures.
            CollateralUnavailableError: There is no usable collateral for its platform.
            ImageUnavailableError: Nobody says which ACPI tables a machine of its shape has.
        """
        quote = parse_quote(evidence.quote)
        try:
            collateral = self.collateral.collateral_for(quote)
        except CollateralMalformedError as exc:
            # What lies on our side says nothing about the peer.
            raise CollateralUnavailableError(f"collateral cannot be used: {exc}") from exc
        verified = verify_quote(evidence.quote, collateral, roots=self.roots, at=at, policy=self.policy)
        return appraise(evidence, verified, expected_report_data=expected, acpi=self.acpi)

    def appraise_blob(self, blob: bytes, *, expected: ReportData, at: datetime) -> Appraisal:
        """As `appraise`, from an attestation blob as it came from the network."""
        return self.appraise(parse_evidence(blob), expected=expected, at=at)

    @property
    def trusts_simulated_root(self) -> bool:
        """Whether quotes that no Intel CPU has signed can pass."""
        return any(root.simulated for root in self.roots.roots)


def boot_info_of(appraisal: Appraisal, app_id: AppId, *, who: str) -> BootInfo:
    """What the contracts judge of a node of app *app_id*.

    Raises:
        AppraisalError: The evidence names no app or no compose hash.
        HandoverRefusedError: It is of another app.
    """
    boot = boot_info(appraisal)
    if boot.app_id != app_id:
        raise HandoverRefusedError(f"{who}: want app {app_id.hex()}, got {boot.app_id.hex()}")
    return boot
