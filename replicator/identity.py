"""Who this node is, by the same examination that its peers get."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from dstack.attestation.appraise import Appraisal
from dstack.attestation.evidence import serialise_evidence
from dstack.attestation.report_data import report_data
from dstack.errors import AppraisalError, InputError
from dstack.policy import BootInfo, boot_info
from dstack.values import AppId, ReportData
from replicator.peers import EvidenceVerifier, QuoteProvider

_SELF_TAG = "handover-self"
_KEPT = timedelta(hours=1)


class Identity:
    """The own evidence of a node, verified and appraised. May be asked from several threads."""

    def __init__(
        self,
        quotes: QuoteProvider,
        verifier: EvidenceVerifier,
        *,
        now: Callable[[], datetime],
        random: Callable[[int], bytes],
    ) -> None:
        self._quotes = quotes
        self._verifier = verifier
        self._now = now
        self._random = random
        self._lock = threading.Lock()
        self._known: tuple[datetime, Appraisal] | None = None

    def appraisal(self) -> Appraisal:
        """What this machine is; examined anew every hour.

        Raises:
            RefusedError: Its own evidence does not pass here.
            UnavailableError: No guest agent, or no collateral.
        """
        with self._lock:
            now = self._now()
            if self._known is None or now >= self._known[0] + _KEPT:
                self._known = now, self._examined(now)
            return self._known[1]

    def _examined(self, now: datetime) -> Appraisal:
        expected = report_data(_SELF_TAG, self._random(32))
        try:
            return self._verifier.appraise(self._quotes.evidence(expected), expected=expected, at=now)
        except InputError as exc:
            # Whoever asks is not to blame.
            raise AppraisalError(f"this node's own evidence: {exc}") from exc

    def boot(self) -> BootInfo:
        """The same as the contracts judge it."""
        return boot_info(self.appraisal())

    @property
    def app_id(self) -> AppId:
        """The app that this node belongs to."""
        return self.boot().app_id

    @property
    def simulated(self) -> bool:
        """Whether no Intel CPU stands behind it."""
        return self.appraisal().verified.root.simulated

    def quoted(self, expected: ReportData) -> bytes:
        """Fresh evidence of this machine over *expected*, as a blob."""
        return serialise_evidence(self._quotes.evidence(expected))
