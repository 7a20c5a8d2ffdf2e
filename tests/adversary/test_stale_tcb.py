"""The host keeps a platform with known holes, and shows old statements in which it was still in order."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from dstack.attestation.tcb import LEVEL_STATUSES, TcbStatus
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.attestation.verify import verify_quote
from dstack.errors import QuoteUntrustedError
from dstack.simulator.pki import raw_signature

STALE = [status.value for status in LEVEL_STATUSES if status not in (TcbStatus.UP_TO_DATE, TcbStatus.REVOKED)]


@pytest.mark.parametrize("status", STALE)
def test_a_platform_that_is_not_up_to_date_is_refused(world, status):
    """Every status but UpToDate is refused by default, and the refusal names status and advisory."""
    with pytest.raises(QuoteUntrustedError, match=rf"step 19: TCB status {status} \(SIMULATED-SA-0000\d\)"):
        world.appraise(world.evidence(world.events(b"\x01" * 32), tcb_status=status))


def test_a_revoked_platform_is_refused(world):
    """A platform whose keys are known to be out is refused by the quote library already."""
    with pytest.raises(QuoteUntrustedError, match=r"step 13: .*Revoked"):
        world.appraise(world.evidence(world.events(b"\x01" * 32), tcb_status="Revoked"))


def test_expired_statements_are_refused(world, honest):
    """Statements kept past their 30 days are refused, so a platform cannot stay good by silence."""
    later = replace(world, at=world.at + timedelta(days=30))
    with pytest.raises(QuoteUntrustedError, match=r"step 4: CRL of .* not at"):
        later.appraise(honest)
    assert later.appraise(honest, collateral=world.pki.collateral(later.at)).compose_hash == b"\x01" * 32


def test_old_documents_beside_new_crls_are_refused(world, honest):
    """Fresh CRLs do not carry an overdue TCB info or QE identity along, from the first second after its last one."""
    later = replace(world, at=world.at + timedelta(days=30, seconds=1))
    fresh = world.pki.collateral(later.at)
    for name in ("tcb_info", "qe_identity"):
        fields = (name, f"{name}_signature")
        mixed = replace(fresh, **{field: getattr(world.collateral, field) for field in fields})
        with pytest.raises(QuoteUntrustedError, match=r"step 5: (TCB info|QE identity): good .* not at"):
            later.appraise(honest, collateral=mixed)


def test_statements_from_before_a_recovery_are_refused(world, honest):
    """A verifier that has seen a higher evaluation number refuses statements of a lower, still in force as they are."""
    document = {**json.loads(world.collateral.tcb_info), "tcbEvaluationDataNumber": 17}
    text = json.dumps(document)
    older = replace(
        world.collateral,
        tcb_info=text,
        tcb_info_signature=raw_signature(world.pki.keys.tcb_signer, text.encode()),
    )
    policy = VerificationPolicy(min_evaluation_number=18)
    with pytest.raises(QuoteUntrustedError, match=r"step 6: TCB evaluation: want number 18 or more, got 17"):
        verify_quote(honest.quote, older, roots=world.roots, at=world.at, policy=policy)


def test_a_revoked_machine_is_refused(world, honest):
    """A machine whose certificate was revoked is refused though its TCB is up to date."""
    revoking = world.pki.collateral(revoked=(world.pki.pck.serial_number,))
    with pytest.raises(QuoteUntrustedError, match=r"step 7: .*revoked, serial 1001"):
        world.appraise(honest, collateral=revoking)


def test_raising_the_svn_in_the_quote_does_not_help(world):
    """A stale platform that writes a better SVN over its own in the quote breaks the signature."""
    evidence = world.evidence(world.events(b"\x01" * 32), tcb_status="OutOfDate")
    quote = bytearray(evidence.quote)
    quote[50] = 9
    with pytest.raises(QuoteUntrustedError, match=r"step 12: quote: its signature does not verify"):
        world.appraise(replace(evidence, quote=bytes(quote)))
