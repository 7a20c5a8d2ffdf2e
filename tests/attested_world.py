"""The world that quotes are attacked in: one simulated maker, and a verifier that trusts it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from dstack.attestation.appraise import Appraisal, appraise
from dstack.attestation.collateral import Collateral
from dstack.attestation.evidence import Evidence
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify import verify_quote
from dstack.measurement.event_log import RuntimeEvent, logged, replay_event_log
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.os_image import SimulatedImage, make_image
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import AppId, ComposeHash, ReportData

AT = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
REPORT_DATA = ReportData(b"bound to this" + bytes(51))


@dataclass(frozen=True)
class AttestedWorld:
    """A maker, an image, and a verifier's settings."""

    pki: SimulatedPki
    image: SimulatedImage
    collateral: Collateral
    roots: TrustedRoots
    at: datetime

    def events(self, compose_hash: bytes) -> tuple[RuntimeEvent, ...]:
        """What a machine that runs this app extends into RTMR3."""
        app = ComposeHash(compose_hash)
        return boot_events(OUR_SEQUENCE, BootInputs(app_id=AppId(app[:20]), compose_hash=app, storage_fs="zfs"))

    def evidence(
        self, events: tuple[RuntimeEvent, ...], *, pki: SimulatedPki | None = None, **quoting: object
    ) -> Evidence:
        """Evidence of a machine that extended *events*, its quote signed by *pki*."""
        config = self.image.vm_config()
        log = self.image.boot_log(config)
        boot = replay_event_log(log)
        registers = TdRegisters(self.image.mr_td(config), boot[0], boot[1], boot[2], predict_rtmr3(events))
        quote = make_quote(pki or self.pki, registers=registers, report_data=REPORT_DATA, **quoting)
        return Evidence(quote, (*log, *map(logged, events)), events, REPORT_DATA, serialise_vm_config(config))

    def appraise(self, evidence: Evidence, *, collateral: Collateral | None = None) -> Appraisal:
        """What the verifier makes of it."""
        verified = verify_quote(evidence.quote, collateral or self.collateral, roots=self.roots, at=self.at)
        return appraise(evidence, verified, expected_report_data=REPORT_DATA)


def attested_world() -> AttestedWorld:
    """The honest world, the same in every run."""
    pki = SimulatedPki.generate(AT, b"honest")
    return AttestedWorld(pki, make_image(), pki.collateral(), TrustedRoots((simulated_root(pki.root_der),)), AT)
