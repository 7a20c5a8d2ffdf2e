"""New keys, and new server certificates over keys that exist."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.keys.certs import build_temp_ca
from dstack.keys.pem import certificate_pem, load_private_key, private_key_pem, spki_der
from dstack.transport.tls import TlsIdentity
from kms.evidence import QuoteProvider
from kms.keystore import KeySet
from kms.roots import Roots


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


def reissue_rpc_certificate(keys: KeySet, quotes: QuoteProvider, *, at: datetime) -> KeySet:
    """*keys* with a new server certificate: the same key and name, fresh evidence bound to that key.

    Raises:
        AgentUnavailableError: There is no evidence to be had.
        InputError: The name of *keys* is not one for a server.
    """
    key = load_private_key(keys.rpc.key_pem)
    return replace(keys, rpc=_rpc_identity(key, keys.roots, keys.root_ca_pem, keys.domain, quotes, at=at))


def _rpc_identity(
    key: ec.EllipticCurvePrivateKey,
    roots: Roots,
    root_ca_pem: str,
    domain: str,
    quotes: QuoteProvider,
    *,
    at: datetime,
) -> TlsIdentity:
    extensions = evidence_extensions(quotes.evidence(ratls_report_data(spki_der(key))))
    certificate = roots.issue_rpc_certificate(root_ca_pem, key, domain, extensions, at=at)
    return TlsIdentity(certificate, private_key_pem(key))


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
