"""Collateral judged without a quote: when it arrives, and once for all quotes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from dstack.attestation.roots import INTEL_ROOTS, TrustedRoots, simulated_root
from dstack.attestation.verify_collateral import verify_collateral
from dstack.errors import CollateralMalformedError, InputError, QuoteUntrustedError
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.statements import EVALUATION_NUMBER, VALIDITY


def test_good_collateral_names_what_it_rests_on(pki: SimulatedPki, roots: TrustedRoots, at: datetime) -> None:
    """Numbers, root and the end of each part; the first of them ends all."""
    verified = verify_collateral(pki.collateral(), roots=roots, at=at)

    assert (verified.root_crl_number, verified.pck_crl_number, verified.evaluation_number) == (1, 1, EVALUATION_NUMBER)
    assert verified.parts.root == roots.roots[0]
    assert verified.expires_at == at + VALIDITY
    ends = {name: end for name, end in verified.ends.items() if "certificate" not in name}
    # Documents hold in the second of their next update, too; the quote library takes CRLs only before it.
    assert ends == {
        "TCB info": at + VALIDITY + timedelta(seconds=1),
        "QE identity": at + VALIDITY + timedelta(seconds=1),
        "root CRL": at + VALIDITY,
        "PCK CRL": at + VALIDITY,
    }
    assert len(verified.ends) == 8


def test_it_is_good_from_issue_to_end(pki: SimulatedPki, roots: TrustedRoots, at: datetime) -> None:
    """Within the issuer's dates at every moment, and a second outside of them at none."""
    for moment in (at, at + VALIDITY - timedelta(seconds=1)):
        verify_collateral(pki.collateral(), roots=roots, at=moment)
    for moment in (at - timedelta(seconds=1), at + VALIDITY):
        with pytest.raises(QuoteUntrustedError, match=r"step 4: CRL .* in force"):
            verify_collateral(pki.collateral(), roots=roots, at=moment)


def test_another_root_is_refused(pki: SimulatedPki, at: datetime) -> None:
    """Neither Intel's root nor another simulator's vouches for it."""
    other = SimulatedPki.generate(at, seed=b"another maker")
    for roots in (INTEL_ROOTS, TrustedRoots((simulated_root(other.root_der),))):
        with pytest.raises(QuoteUntrustedError, match="step 4: PCK CRL issuer chain: want exactly an issuer and the"):
            verify_collateral(pki.collateral(), roots=roots, at=at)


def test_chains_under_two_roots_are_refused(pki: SimulatedPki, roots: TrustedRoots, at: datetime) -> None:
    """All of it ends in one root, though both roots be trusted."""
    other = SimulatedPki.generate(at, seed=b"another maker")
    both = TrustedRoots((*roots.roots, simulated_root(other.root_der)))
    mixed = replace(pki.collateral(), tcb_info_issuer_chain=other.collateral().tcb_info_issuer_chain)

    with pytest.raises(QuoteUntrustedError, match="step 5: TCB info issuer chain"):
        verify_collateral(mixed, roots=both, at=at)


def test_lower_crl_numbers_than_wanted_are_refused(pki: SimulatedPki, roots: TrustedRoots, at: datetime) -> None:
    """Each minimum is that of its own CRL."""
    for minimum in ({"min_root_crl_number": 2}, {"min_pck_crl_number": 2}):
        with pytest.raises(QuoteUntrustedError, match="want number 2 or more, got 1"):
            verify_collateral(pki.collateral(), roots=roots, at=at, **minimum)


def test_crls_that_are_none_are_malformed(pki: SimulatedPki, roots: TrustedRoots, at: datetime) -> None:
    """Nothing is trusted before all of it is parsed."""
    with pytest.raises(CollateralMalformedError, match="root CRL: want a DER CRL"):
        verify_collateral(replace(pki.collateral(), root_ca_crl=b"no"), roots=roots, at=at)


def test_a_time_without_a_zone_is_refused(pki: SimulatedPki, roots: TrustedRoots, at: datetime) -> None:
    """A moment is asked for, not a time of day somewhere."""
    with pytest.raises(InputError, match="want an aware time"):
        verify_collateral(pki.collateral(), roots=roots, at=at.replace(tzinfo=None))
