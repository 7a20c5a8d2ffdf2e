"""The law as several endpoints of a chain tell it."""

from __future__ import annotations

import logging

from dstack.attestation.appraise import Appraisal
from dstack.attestation.quote import TdReport
from dstack.chain.action_data import Genesis
from dstack.chain.endpoints import Endpoints
from dstack.chain.gathering import unprotected
from dstack.chain.workload import WorkloadReader
from dstack.errors import DstackError
from dstack.policy import BlockRef, BootInfo
from dstack.values import AppId, Digest32, Register
from replicator.config import ChainSettings
from replicator.documents import Law
from replicator.law import Verdict

_log = logging.getLogger(__name__)


class ChainLaw:
    """Implements `LawReader`."""

    def __init__(self, settings: ChainSettings) -> None:
        """Connect, so that a wrong setting shows at once.

        Raises:
            ConfigError: A setting is not of its form, or does not lead to the contracts.
            ChainUnavailableError: Too few endpoints answer and agree.
        """
        for url in unprotected(settings.rpc_urls):
            _log.warning("chain endpoint %s: whoever is in between can lie", url)
        self._settings = settings
        self.law: Law = settings.law
        self.requires_genesis = settings.requires_genesis
        self._endpoints = Endpoints(
            settings.rpc_urls,
            block_tag=settings.block_tag,
            agreement=settings.agreement,
            chain_id=settings.law.chain_id,
            max_age=settings.max_age,
        )
        self._reader = WorkloadReader(
            self._endpoints, operator=f"0x{self.law.operator.hex()}", kms_auth=f"0x{self.law.contract.hex()}"
        )
        try:
            self._reader.check(chain_id=settings.law.chain_id)
        except DstackError:
            self.close()
            raise

    def close(self) -> None:
        """End the connections."""
        self._endpoints.close()

    def block(self) -> BlockRef:
        """As `LawReader` says."""
        return self._reader.block()

    def judge(self, boot: BootInfo, appraisal: Appraisal) -> Verdict:
        """As `LawReader` says."""
        registers = _registers(appraisal) if self._settings.require_listed_registers else ()
        answer = self._reader.judge(boot, registers)
        return Verdict(answer.decision, _digest(answer.genesis))

    def genesis(self, app_id: AppId) -> Digest32 | None:
        """As `LawReader` says."""
        return _digest(self._reader.genesis(app_id))


def _registers(appraisal: Appraisal) -> tuple[Register, ...]:
    body = appraisal.verified.quote.body
    assert isinstance(body, TdReport)  # `appraise` takes no other
    return body.mr_td, body.rtmr0, body.rtmr1, body.rtmr2, body.rtmr3


def _digest(genesis: Genesis | None) -> Digest32 | None:
    return genesis.evidence if genesis else None
