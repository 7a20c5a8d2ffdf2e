"""What the chain says of a node: the forms of the question and of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dstack.attestation.appraise import Appraisal
from dstack.errors import HandoverRefusedError, KeyReleaseDeniedError
from dstack.policy import BlockRef, BootInfo, Decision, Granted, Rule
from dstack.values import AppId, Digest32
from replicator.documents import Law


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the chain says of one node, all in the state of one block.

    Attributes:
        decision: Of KmsAuth, the app's own contract and UpgradeOperator together.
        genesis: The genesis recorded for the app; None if none is.
    """

    decision: Decision
    genesis: Digest32 | None


class LawReader(Protocol):
    """Asks the contracts of one law."""

    @property
    def law(self) -> Law:
        """Which contracts on which chain."""
        ...

    @property
    def requires_genesis(self) -> bool:
        """Whether nothing is handed over before the chain records the app's genesis."""
        ...

    def block(self) -> BlockRef:
        """The block that is agreed on now.

        Raises:
            ChainUnavailableError: Could not ask.
        """
        ...

    def judge(self, boot: BootInfo, appraisal: Appraisal) -> Verdict:
        """Whether a node may have the app's secrets.

        Raises:
            ChainUnavailableError: Could not ask.
        """
        ...

    def genesis(self, app_id: AppId) -> Digest32 | None:
        """The genesis recorded for an app.

        Raises:
            ChainUnavailableError: Could not ask.
        """
        ...


@dataclass(frozen=True, slots=True)
class Judged:
    """A node that may have the app's secrets, in the state of one block.

    Attributes:
        who: "old node" or "new node", for errors.
    """

    boot: BootInfo
    appraisal: Appraisal
    who: str
    block: BlockRef
    genesis: Digest32 | None

    @classmethod
    def by(cls, law: LawReader, boot: BootInfo, appraisal: Appraisal, *, who: str) -> Judged:
        """What *law* says of it now.

        Raises:
            KeyReleaseDeniedError: The chain forbids it.
            ChainUnavailableError: Could not ask.
        """
        verdict = law.judge(boot, appraisal)
        return cls(boot, appraisal, who, require_granted(verdict.decision, who=who), verdict.genesis)

    @property
    def simulated(self) -> bool:
        """Whether its evidence rests on a simulated root."""
        return self.appraisal.verified.root.simulated

    def require_still_granted(self, law: LawReader) -> None:
        """Ask once more; raises as `by`."""
        Judged.by(law, self.boot, self.appraisal, who=self.who)


def require_granted(decision: Decision, *, who: str) -> BlockRef:
    """The block in whose state a node is allowed.

    Args:
        decision: Of the chain.
        who: "old node" or "new node", for the error.

    Raises:
        KeyReleaseDeniedError: The chain forbids it; names the rule and what it judged.
    """
    if isinstance(decision, Granted):
        return decision.block
    seen = f" ({decision.got})" if decision.got else ""
    hint = ": not executed yet, ended, or removed" if decision.rule is Rule.COMPOSE_HASH else ""
    block = decision.block.number
    raise KeyReleaseDeniedError(
        decision.rule.name, f"{who}: {decision.reason}{seen}{hint}; asked at block {block}", block
    )


def require_genesis(genesis: Digest32, recorded: Digest32 | None, *, required: bool, who: str) -> None:
    """See that a secure file is the one that the chain knows for the app.

    Raises:
        HandoverRefusedError: It is another; or the chain knows none, and one is *required*.
    """
    if recorded is None and required:
        raise HandoverRefusedError(
            f"{who}: genesis: want {genesis.hex()} recorded on the chain, got nothing there: the owners propose it"
        )
    if recorded is not None and recorded != genesis:
        raise HandoverRefusedError(f"{who}: genesis: the chain records {recorded.hex()}, got {genesis.hex()}")
