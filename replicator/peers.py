"""Judging the other side of a handover: verify its quote, appraise its evidence, ask the chain."""

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
from dstack.errors import CollateralMalformedError, CollateralUnavailableError, KeyReleaseDeniedError
from dstack.policy import BlockRef, BootInfo, Decision, Granted, Rule
from dstack.values import ReportData
from replicator.documents import Party

if TYPE_CHECKING:
    from dstack.transport.collateral import CollateralSource


class ChainReader(Protocol):
    """Asks the contract that decides."""

    @property
    def chain_id(self) -> int:
        """The chain that it is on."""
        ...

    def authorize_app(self, boot: BootInfo) -> Decision:
        """Ask `KmsAuth.isAppAllowed` in the state of one block."""
        ...


class QuoteProvider(Protocol):
    """Has this machine quoted."""

    def evidence(self, report_data: ReportData) -> Evidence:
        """Fresh evidence that carries *report_data*."""
        ...


@dataclass(frozen=True, slots=True)
class EvidenceVerifier:
    """What this node was told to trust, applied to one evidence after the other."""

    roots: TrustedRoots
    policy: VerificationPolicy
    collateral: CollateralSource

    def appraise(self, evidence: Evidence, *, expected: ReportData, at: datetime) -> Appraisal:
        """Verify and appraise evidence that must carry *expected*. Does not ask the chain.

        Raises:
            InputError: The evidence is malformed.
            QuoteUntrustedError: A verification step failed.
            AppraisalError: It is genuine, but not for *expected*, or not what the OS image measures.
            CollateralUnavailableError: There is no usable collateral for its platform.
        """
        quote = parse_quote(evidence.quote)
        try:
            collateral = self.collateral.collateral_for(quote)
        except CollateralMalformedError as exc:
            # What lies on our side says nothing about the peer.
            raise CollateralUnavailableError(f"collateral cannot be used: {exc}") from exc
        verified = verify_quote(evidence.quote, collateral, roots=self.roots, at=at, policy=self.policy)
        return appraise(evidence, verified, expected_report_data=expected)

    def appraise_blob(self, blob: bytes, *, expected: ReportData, at: datetime) -> Appraisal:
        """As `appraise`, from an attestation blob as it came from the network."""
        return self.appraise(parse_evidence(blob), expected=expected, at=at)

    @property
    def trusts_simulated_root(self) -> bool:
        """Whether quotes that no Intel CPU has signed can pass."""
        return any(root.simulated for root in self.roots.roots)


def authorize(chain: ChainReader, boot: BootInfo, *, who: str) -> BlockRef:
    """Ask the chain whether a node may have the app's keys.

    Args:
        chain: Asks the contract.
        boot: The node, as appraised.
        who: "old node" or "new node", for the error.

    Returns:
        The block in whose state it is allowed.

    Raises:
        KeyReleaseDeniedError: The chain forbids it; names the rule and what it judged.
        ChainUnavailableError: Could not ask.
    """
    decision = chain.authorize_app(boot)
    if isinstance(decision, Granted):
        return decision.block
    seen = f" ({decision.got})" if decision.got else ""
    hint = ": not executed yet, or removed" if decision.rule is Rule.COMPOSE_HASH else ""
    block = decision.block.number
    raise KeyReleaseDeniedError(
        decision.rule.name, f"{who}: {decision.reason}{seen}{hint}; asked at block {block}", block
    )


def party(boot: BootInfo) -> Party:
    """How a receipt names a node."""
    return Party(boot.compose_hash, boot.instance_id, boot.os_image_hash)
