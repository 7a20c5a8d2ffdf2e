"""New keys, and new server certificates over keys that exist."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import coincurve
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.keys.certs import build_root_ca, build_rpc_cert, build_temp_ca
from dstack.keys.derivation import RootKeys
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, p256_scalar, private_key_pem, spki_der
from dstack.keys.scalars import p256_from_scalar
from dstack.transport.tls import TlsIdentity
from kms.evidence import QuoteProvider
from kms.keystore import KeySet


def generate_keys(domain: str, quotes: QuoteProvider, *, at: datetime) -> KeySet:
    """Fresh root keys, and everything else that a KMS has.

    Raises:
        AgentUnavailableError: There is no evidence for the server certificate.
        InputError: *domain* is not a name for a server.
    """
    root_key, temp_key = _p256(), _p256()
    root = RootKeys(ca=p256_scalar(root_key), k256=coincurve.PrivateKey().secret)
    root_ca_pem = certificate_pem(build_root_ca(root_key, at=at))
    return KeySet(
        root=root,
        root_ca_pem=root_ca_pem,
        temp_ca=TlsIdentity(certificate_pem(build_temp_ca(temp_key, at=at)), private_key_pem(temp_key)),
        rpc=_rpc_identity(_p256(), root, root_ca_pem, domain, quotes, at=at),
        domain=domain,
    )


def reissue_rpc_certificate(keys: KeySet, quotes: QuoteProvider, *, at: datetime) -> KeySet:
    """*keys* with a new server certificate: the same key and name, fresh evidence bound to that key.

    Raises:
        AgentUnavailableError: There is no evidence to be had.
        InputError: The name of *keys* is not one for a server.
    """
    key = load_private_key(keys.rpc.key_pem)
    return replace(keys, rpc=_rpc_identity(key, keys.root, keys.root_ca_pem, keys.domain, quotes, at=at))


def _rpc_identity(
    key: ec.EllipticCurvePrivateKey,
    root: RootKeys,
    root_ca_pem: str,
    domain: str,
    quotes: QuoteProvider,
    *,
    at: datetime,
) -> TlsIdentity:
    extensions = evidence_extensions(quotes.evidence(ratls_report_data(spki_der(key))))
    certificate = build_rpc_cert(
        key, load_certificate(root_ca_pem), p256_from_scalar(root.ca), domain, extensions, at=at
    )
    return TlsIdentity(certificate_pem(certificate), private_key_pem(key))


def _p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
