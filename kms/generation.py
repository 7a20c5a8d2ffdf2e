"""New keys, and new server certificates over keys that exist."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.ratls import classic_extensions, evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.keys.certs import build_temp_ca
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem, spki_der
from dstack.transport.tls import TlsIdentity
from kms.evidence import QuoteProvider
from kms.keystore import KeySet
from kms.roots import Roots

# As upstream does.
_RENEWED_BEFORE = timedelta(days=365)


def generate_keys(domain: str, quotes: QuoteProvider, *, at: datetime) -> KeySet:
    """Fresh root keys, and everything else that a KMS has.

    Raises:
        AgentUnavailableError: There is no evidence for the server certificate.
        InputError: *domain* is not a name for a server.
    """
    return dress_keys(Roots.generate(), _p256(), domain, quotes, at=at)


def dress_keys(
    roots: Roots, temp_key: ec.EllipticCurvePrivateKey, domain: str, quotes: QuoteProvider, *, at: datetime
) -> KeySet:
    """Everything that a KMS has, over root keys and a temporary CA's key that exist.

    Raises:
        AgentUnavailableError: There is no evidence for the server certificate.
        InputError: *domain* is not a name for a server.
    """
    root_ca_pem = roots.issue_root_ca(at=at)
    return KeySet(
        roots=roots,
        root_ca_pem=root_ca_pem,
        temp_ca=TlsIdentity(certificate_pem(build_temp_ca(temp_key, at=at)), private_key_pem(temp_key)),
        rpc=_rpc_identity(_p256(), roots, root_ca_pem, domain, quotes, at=at),
        domain=domain,
    )


def renew_authorities(keys: KeySet, *, at: datetime) -> KeySet:
    """*keys*, with new certificates of root and temporary CA where one ends within a year: the same keys and names.

    They are not issued anew at each start, so that what clients keep of them stays equal.
    """
    if _lasts(keys.root_ca_pem, at) and _lasts(keys.temp_ca.certificate_pem, at):
        return keys
    temp_ca = certificate_pem(build_temp_ca(load_private_key(keys.temp_ca.key_pem), at=at))
    return replace(
        keys,
        root_ca_pem=keys.roots.issue_root_ca(at=at),
        temp_ca=TlsIdentity(temp_ca, keys.temp_ca.key_pem),
    )


def _lasts(pem: str, at: datetime) -> bool:
    return load_certificate(pem).not_valid_after_utc - at > _RENEWED_BEFORE


def reissue_rpc_certificate(keys: KeySet, quotes: QuoteProvider, *, at: datetime, classic: bool = False) -> KeySet:
    """*keys* with a new server certificate: the same key and name, fresh evidence bound to that key.

    With *classic*, the evidence is also in the form that dstack up to 0.5.5 reads.

    Raises:
        AgentUnavailableError: There is no evidence to be had.
        InputError: The name of *keys* is not one for a server.
    """
    key = load_private_key(keys.rpc.key_pem)
    rpc = _rpc_identity(key, keys.roots, keys.root_ca_pem, keys.domain, quotes, at=at, classic=classic)
    return replace(keys, rpc=rpc)


def _rpc_identity(
    key: ec.EllipticCurvePrivateKey,
    roots: Roots,
    root_ca_pem: str,
    domain: str,
    quotes: QuoteProvider,
    *,
    at: datetime,
    classic: bool = False,
) -> TlsIdentity:
    evidence = quotes.evidence(ratls_report_data(spki_der(key)))
    extensions = evidence_extensions(evidence) + (classic_extensions(evidence) if classic else [])
    certificate = roots.issue_rpc_certificate(root_ca_pem, key, domain, extensions, at=at)
    return TlsIdentity(certificate, private_key_pem(key))


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
