"""Evidence in the demo: appraised as an auditor does, and kept in the results."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from dstack.attestation.appraise import Appraisal, appraise
from dstack.attestation.evidence import Evidence, serialise_evidence
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify import verify_quote
from dstack.devnet.transcript import Transcript
from dstack.devnet.world import World
from dstack.measurement.event_log import serialise_event_log


def appraised(world: World, evidence: Evidence) -> Appraisal:
    """What an auditor does with evidence, here with the simulator's root configured."""
    verified = verify_quote(
        evidence.quote,
        world.pki.collateral(),
        roots=TrustedRoots((simulated_root(world.pki.root_der),)),
        at=datetime.now(UTC),
    )
    return appraise(evidence, verified, expected_report_data=evidence.report_data)


def keep_evidence(say: Transcript, folder: str, evidence: Evidence) -> None:
    """Put quote, event log and the whole evidence into the results."""
    log = serialise_event_log(evidence.event_log)
    say.keep(f"{folder}/quote.bin", evidence.quote)
    say.keep(f"{folder}/event-log.json", log)
    say.keep(f"{folder}/evidence.bin", serialise_evidence(evidence))
    answer = {
        "quote": evidence.quote.hex(),
        "event_log": log,
        "report_data": evidence.report_data.hex(),
        "vm_config": evidence.config,
    }
    say.keep(f"{folder}/get-quote.json", json.dumps(answer, indent=2) + "\n")
