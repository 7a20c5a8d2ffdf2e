"""The attacker makes a complete platform of software, in every name like the trusted one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstack.attestation.roots import INTEL_ROOTS
from dstack.attestation.verify import verify_quote
from dstack.errors import QuoteUntrustedError
from dstack.simulator.pki import SimulatedPki


@pytest.fixture(scope="module")
def foreign(world) -> SimulatedPki:
    """The attacker's maker: the same names, other keys."""
    return SimulatedPki.generate(world.at, b"attacker")


def test_the_honest_machine_is_accepted(world, honest):
    """Without an attack the machine is accepted: the refusals below have their reason in the attack."""
    assert world.appraise(honest).compose_hash == b"\x01" * 32


def test_a_foreign_platform_is_refused(world, foreign):
    """Quote and collateral of another root are refused, consistent as they are."""
    evidence = world.evidence(world.events(b"\x01" * 32), pki=foreign)
    with pytest.raises(QuoteUntrustedError, match=r"step 3: root 'Simulated SGX Root CA' is not a configured root"):
        world.appraise(evidence, collateral=foreign.collateral())


def test_a_foreign_quote_with_honest_collateral_is_refused(world, foreign):
    """The honest maker's statements do not help a foreign quote."""
    evidence = world.evidence(world.events(b"\x01" * 32), pki=foreign)
    with pytest.raises(QuoteUntrustedError, match=r"step 3: root 'Simulated SGX Root CA' is not a configured root"):
        world.appraise(evidence)


def test_a_foreign_chain_under_the_honest_root_certificate_is_refused(world, foreign):
    """A foreign chain that ends in the honest root's certificate is refused: that root did not sign it."""
    evidence = world.evidence(world.events(b"\x01" * 32), pki=replace(foreign, root=world.pki.root))
    with pytest.raises(QuoteUntrustedError, match=r"step 4: PCK CRL issuer chain"):
        world.appraise(evidence)
    with pytest.raises(
        QuoteUntrustedError, match=r"step 4: CRL of certificate 'Simulated SGX Root CA': not signed by it"
    ):
        world.appraise(evidence, collateral=replace(foreign, root=world.pki.root).collateral())


def test_foreign_statements_about_an_honest_quote_are_refused(world, honest, foreign):
    """A foreign maker cannot bless an honest platform, document by document."""
    for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"):
        mixed = replace(world.collateral, **{name: getattr(foreign.collateral(), name)})
        with pytest.raises(QuoteUntrustedError, match=r"step [45]: .* want exactly an issuer and the root"):
            world.appraise(honest, collateral=mixed)
    for name in ("root_ca_crl", "pck_crl"):
        mixed = replace(world.collateral, **{name: getattr(foreign.collateral(), name)})
        with pytest.raises(QuoteUntrustedError, match=r"step 4: CRL of .*: not signed by it"):
            world.appraise(honest, collateral=mixed)


def test_a_simulated_platform_is_refused_by_default(world, honest):
    """Where no simulated root was configured, a simulated quote is refused."""
    with pytest.raises(QuoteUntrustedError, match=r"step 3"):
        verify_quote(honest.quote, world.collateral, roots=INTEL_ROOTS, at=world.at)
