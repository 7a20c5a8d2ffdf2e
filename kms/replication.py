"""Fetching the root keys from another KMS (kms.md 6.5).

(1) Anybody at the URL gives us a temporary CA; the server's certificate of that connection is kept. (2) That
certificate must be of a KMS: its evidence verified, bound to its key, and permitted by our own view of the chain.
(3) We certify a fresh key with the temporary CA, and bind our evidence to it. (4) We connect again and ask for the
root keys; who answers must show the very certificate of step 1. (5) The keys must be those of the certificates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.appraise import Appraisal
from dstack.attestation.certificates import parse_certificate
from dstack.attestation.evidence import Evidence
from dstack.attestation.ratls import certificate_report_data, evidence_extensions, evidence_from_certificate
from dstack.attestation.report_data import ratls_report_data
from dstack.errors import (
    AppraisalError,
    EvidenceMalformedError,
    InputError,
    KeyMalformedError,
    KeyReleaseDeniedError,
    PeerRefusedError,
)
from dstack.keys.certs import OID_CERTIFICATE_USAGE, USAGE_KMS_RPC, build_client_cert, certificate_payload
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem, spki_der
from dstack.transport.client import PrpcClient
from dstack.transport.tls import TlsIdentity, unauthenticated_client_context
from dstack.web.urls import split_url
from dstack.wire.kms import GetKmsKeyRequest, GetTempCaCertResponse, KmsKeyResponse
from kms.authorization import ChainAuthority, authorize
from kms.decisions import EVIDENCE_MISSING, Question, Subject
from kms.evidence import EvidenceVerifier, QuoteProvider
from kms.roots import Roots

_LONGEST_URL = 2048


@dataclass(frozen=True, slots=True)
class ReceivedKeys:
    """The keys of another KMS."""

    roots: Roots
    temp_ca_key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Source:
    """The other KMS as it showed itself at the first connection."""

    certificate_der: bytes
    temporary: GetTempCaCertResponse


@dataclass(frozen=True, slots=True)
class Replication:
    """Fetches root keys, for a machine that may have them, from one that may give them.

    Attributes:
        quotes: Evidence about this machine.
        verifier: Verifies the other's.
        authority: The chain as this machine sees it.
    """

    quotes: QuoteProvider
    verifier: EvidenceVerifier
    authority: ChainAuthority

    def fetch(self, source_url: str, request_id: str) -> ReceivedKeys:
        """The root keys of the KMS at *source_url*.

        Raises:
            InputError: *source_url* is not the URL of a KMS.
            KeyReleaseDeniedError: Our chain does not permit that KMS, or its evidence does not hold; or it denies us.
            AppraisalError: It is not meant for KMS calls, or changed between the two connections.
            PeerRefusedError: It refuses otherwise, or what it gives does not belong together.
            UnavailableError: It, the chain, the guest agent or collateral could not be asked.
        """
        base_url = _base_url(source_url)
        # (1)
        source = _first_contact(base_url)
        # (2)
        root = self._require_permitted(source, request_id)
        # (3)
        own, identity = self._identity(source)
        # (4)
        pinned = _only(source.certificate_der)
        with PrpcClient(base_url, tls=unauthenticated_client_context(identity), accept_peer=pinned) as client:
            answer = client.call("GetKmsKey", GetKmsKeyRequest(own.config), KmsKeyResponse)
        # (5)
        return _belonging_to(answer, root, source)

    def _require_permitted(self, source: _Source, request_id: str) -> x509.Certificate:
        """The root certificate of a source that may give root keys."""
        authorize(Question(Subject.SOURCE, request_id), lambda: self._appraise(source), self.authority.authorize_kms)
        certificate = parse_certificate(source.certificate_der, what="source KMS", error=EvidenceMalformedError)
        usage = certificate_payload(certificate, OID_CERTIFICATE_USAGE)
        if usage != USAGE_KMS_RPC:
            raise AppraisalError(f"source KMS: want a certificate with usage {USAGE_KMS_RPC!r}, got {usage!r}")
        try:
            root = load_certificate(source.temporary.ca_cert)
            certificate.verify_directly_issued_by(root)
        except (KeyMalformedError, InvalidSignature, ValueError, TypeError) as exc:
            raise AppraisalError("source KMS: its certificate is not signed by the root it names") from exc
        return root

    def _appraise(self, source: _Source) -> Appraisal:
        evidence = evidence_from_certificate(source.certificate_der)
        if evidence is None:
            raise KeyReleaseDeniedError(EVIDENCE_MISSING, "No attestation provided")
        # Certificates of the classic form carry no config; our own image is then the one it must run.
        vm_config = "" if evidence.config else self._own_config()
        bound_to = certificate_report_data(source.certificate_der)
        return self.verifier.appraise(evidence, bound_to=bound_to, vm_config=vm_config)

    def _own_config(self) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        return self.quotes.evidence(ratls_report_data(spki_der(key))).config

    def _identity(self, source: _Source) -> tuple[Evidence, TlsIdentity]:
        """A certificate for a fresh key of ours, carrying evidence that is bound to it."""
        key = ec.generate_private_key(ec.SECP256R1())
        evidence = self.quotes.evidence(ratls_report_data(spki_der(key)))
        try:
            authority = load_certificate(source.temporary.temp_ca_cert), load_private_key(source.temporary.temp_ca_key)
            built = build_client_cert(key, *authority, evidence_extensions(evidence), at=self.verifier.clock())
        except KeyMalformedError as exc:
            raise PeerRefusedError(f"source KMS: temporary CA: {exc}") from exc
        return evidence, TlsIdentity(certificate_pem(built), private_key_pem(key))


def _base_url(source_url: str) -> str:
    """*source_url* with `/prpc` at its end, once."""
    try:
        parts = split_url(source_url[: _LONGEST_URL + 1])
        plain = parts.scheme == "https" and not parts.query and not parts.fragment and parts.username is None
    except ValueError:
        plain = False
    if not plain or len(source_url) > _LONGEST_URL or not source_url.isascii():
        raise InputError("source_url: want https://HOST[:PORT] of a KMS")
    return source_url.rstrip("/").removesuffix("/prpc") + "/prpc"


def _first_contact(base_url: str) -> _Source:
    seen: list[bytes] = []
    with PrpcClient(base_url, tls=unauthenticated_client_context(), accept_peer=seen.append) as client:
        temporary = client.call("GetTempCaCert", None, GetTempCaCertResponse)
    return _Source(seen[0], temporary)


def _only(certificate_der: bytes) -> Callable[[bytes], None]:
    def accept(shown: bytes) -> None:
        if shown != certificate_der:
            raise AppraisalError("source KMS: its second connection shows another certificate than the first")

    return accept


def _belonging_to(answer: KmsKeyResponse, root: x509.Certificate, source: _Source) -> ReceivedKeys:
    if len(answer.keys) != 1:
        raise PeerRefusedError(f"source KMS: want exactly one set of keys, got {len(answer.keys)}")
    try:
        roots, temp_ca_key = Roots.from_peer(answer.keys[0]), load_private_key(answer.temp_ca_key)
        temp_ca = load_certificate(source.temporary.temp_ca_cert)
    except KeyMalformedError as exc:
        raise PeerRefusedError(f"source KMS: {exc}") from exc
    if roots.ca_spki != spki_der(root):
        raise PeerRefusedError("source KMS: its root key is not that of the root certificate it names")
    if spki_der(temp_ca_key) != spki_der(temp_ca):
        raise PeerRefusedError("source KMS: its temporary CA's key is not that of the certificate it gave")
    return ReceivedKeys(roots, temp_ca_key)
