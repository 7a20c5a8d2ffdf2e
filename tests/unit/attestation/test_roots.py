"""Roots of trust."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.quote import parse_quote
from dstack.attestation.roots import INTEL_ROOTS, INTEL_SGX_ROOT, RoleNames, TrustedRoots, simulated_root
from dstack.errors import CollateralMalformedError, ConfigError

# SHA-256 of IntelSGXRootCA.der as Intel publishes it.
FINGERPRINT = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


def root_named(name: str) -> bytes:
    """A self-signed certificate of this CN."""
    key, at = ec.generate_private_key(ec.SECP256R1()), datetime(2027, 1, 1, tzinfo=UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, at, at + timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_intels_root_is_pinned(quotes):
    """The root compiled in has Intel's fingerprint and is the one in a real quote."""
    chain = parse_quote((quotes / "intel-tdx-v4-uptodate" / "quote.bin").read_bytes()).signature.pck_chain_pem
    root = x509.load_pem_x509_certificates(chain.removesuffix(b"\0"))[2]

    assert hashlib.sha256(INTEL_SGX_ROOT.certificate_der).hexdigest() == INTEL_SGX_ROOT.fingerprint == FINGERPRINT
    assert INTEL_ROOTS.find(root) == INTEL_SGX_ROOT
    assert not INTEL_SGX_ROOT.simulated


def test_a_simulated_root_names_its_roles(pki):
    """A simulated root derives the CNs of all roles from its own, and says that it is simulated."""
    root = simulated_root(pki.root_der)

    assert root.simulated
    assert root.fingerprint == hashlib.sha256(pki.root_der).hexdigest()
    assert root.names == RoleNames(
        root="Simulated SGX Root CA",
        pck_authorities=("Simulated SGX PCK Platform CA", "Simulated SGX PCK Processor CA"),
        pck="Simulated SGX PCK Certificate",
        tcb_signer="Simulated SGX TCB Signing",
    )


def test_no_default_trusts_a_simulated_root(pki):
    """The default roots hold Intel's alone, so a simulated root is not found among them."""
    assert INTEL_ROOTS.find(pki.root) is None
    assert [root.simulated for root in INTEL_ROOTS.roots] == [False]


@pytest.mark.parametrize("name", ["Intel SGX Root CA", "INTEL SGX Root CA"])
def test_intels_root_is_never_simulated(name):
    """Neither Intel's certificate nor one that borrows its name can be configured as a simulated root."""
    for der in (INTEL_SGX_ROOT.certificate_der, root_named(name)):
        with pytest.raises(ConfigError, match=r"Intel's root cannot be taken as a simulated one"):
            simulated_root(der)


@pytest.mark.parametrize("name", ["Root CA", " SGX Root CA", "Simulated SGX Root CA 2"])
def test_another_name_is_refused(name):
    """A certificate whose CN is not a prefix and the suffix of a root is refused."""
    with pytest.raises(CollateralMalformedError, match=r"simulated root: want a CN ending in ' SGX Root CA'"):
        simulated_root(root_named(name))


def test_what_is_no_certificate_is_refused(pki):
    """Bytes that are no certificate, or are followed by others, are refused."""
    for der in (b"", b"root", pki.root_der + b"\0", pki.root_der[:-1]):
        with pytest.raises(CollateralMalformedError, match=r"simulated root: want a DER certificate"):
            simulated_root(der)


def test_trust_in_nothing_is_a_mistake():
    """An empty set of roots is refused: it would refuse every quote, silently."""
    with pytest.raises(ConfigError, match=r"trusted roots: want at least one"):
        TrustedRoots(())
