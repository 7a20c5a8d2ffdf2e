"""Fresh TLS keys for an app, and certificates for them (guest.md 4.3, kms.md 4.6).

With a KMS, the KMS certifies: it is shown a signing request with evidence that is bound to the new key, and answers
leaf, app CA and root. Without one, the app's own root certifies, and nobody else vouches for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.evidence import Evidence, serialise_evidence, strip_evidence
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.signing_request import MOST_NAMES, serialise_signing_request
from dstack.errors import KeyMalformedError, MessageMalformedError, PeerRefusedError
from dstack.guest.app_keys import KmsProvider, LocalProvider, NoProvider
from dstack.guest.boot import Booted
from dstack.guest.kms_client import KmsTrust, accept_kms
from dstack.keys.app_certs import CertificateWishes, build_app_leaf
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem, spki_der
from dstack.transport.client import PrpcClient
from dstack.transport.tls import client_context
from dstack.values import ReportData
from dstack.wire.guest import GetTlsKeyRequest, GetTlsKeyResponse
from dstack.wire.kms import SignCertRequest, SignCertResponse

_API_VERSION = 2


@dataclass(frozen=True, slots=True)
class TlsKeys:
    """Makes keys for one booted guest.

    Attributes:
        booted: The guest.
        evidence: Evidence about its machine that carries the given report data.
        clock: Now, aware.
        trust: What the KMS's own evidence must pass; None takes a KMS without evidence.
    """

    booted: Booted
    evidence: Callable[[ReportData], Evidence]
    clock: Callable[[], datetime]
    trust: KmsTrust | None = None

    def issue(self, request: GetTlsKeyRequest, key: ec.EllipticCurvePrivateKey | None = None) -> GetTlsKeyResponse:
        """A fresh P-256 key, or *key*, and the chain of its certificate: the leaf first, the root last.

        Raises:
            MessageMalformedError: The wishes cannot be fulfilled.
            InputError: A name or a time that a certificate cannot hold.
            KeyReleaseDeniedError: The KMS asked the chain, and the chain forbids it.
            PeerRefusedError: The KMS refused otherwise, or its answer is not a chain for this key.
            UnavailableError: The KMS did not answer, or could not find out.
        """
        wishes = _wishes(request)
        key = key or ec.generate_private_key(ec.SECP256R1())
        provider = self.booted.provided.provider
        if isinstance(provider, KmsProvider):
            chain = self._certified_by_kms(provider, key, wishes)
        else:
            chain = self._certified_here(provider, key, wishes)
        return GetTlsKeyResponse(key=private_key_pem(key), certificate_chain=chain)

    def _certified_by_kms(
        self, provider: KmsProvider, key: ec.EllipticCurvePrivateKey, wishes: CertificateWishes
    ) -> tuple[str, ...]:
        evidence = self.evidence(ratls_report_data(spki_der(key)))
        raw = serialise_signing_request(spki_der(key), wishes, serialise_evidence(evidence))
        asked = SignCertRequest(_API_VERSION, raw, key.sign(raw, ec.ECDSA(hashes.SHA256())), evidence.config)
        at, root_pem = self.clock(), self.booted.provided.ca_cert_pem
        with PrpcClient(
            provider.url.rstrip("/") + "/prpc",
            tls=client_context(ca_pem=root_pem),
            accept_peer=lambda der: accept_kms(der, self.trust, at),
        ) as client:
            answer = client.call("SignCert", asked, SignCertResponse)
        _require_chain(answer.certificate_chain, key, provider.root_spki)
        return answer.certificate_chain

    def _certified_here(
        self, provider: LocalProvider | NoProvider, key: ec.EllipticCurvePrivateKey, wishes: CertificateWishes
    ) -> tuple[str, ...]:
        if wishes.ext_app_info:
            raise MessageMalformedError("with_app_info: want a KMS, which vouches for it, got a guest without one")
        attestation = None
        if wishes.ext_quote:
            attestation = serialise_evidence(strip_evidence(self.evidence(ratls_report_data(spki_der(key)))))
        root_pem = self.booted.provided.ca_cert_pem
        leaf = build_app_leaf(
            key.public_key(),
            load_certificate(root_pem),
            load_private_key(provider.app_key_pem),
            self.booted.app_id,
            wishes,
            at=self.clock(),
            attestation=attestation,
        )
        return certificate_pem(leaf), root_pem


def _wishes(request: GetTlsKeyRequest) -> CertificateWishes:
    not_before, not_after = request.not_before, request.not_after
    if not_before is not None and not_after is not None and not_before >= not_after:
        raise MessageMalformedError("not_before must be earlier than not_after")
    if len(request.alt_names) > MOST_NAMES:
        raise MessageMalformedError(f"alt_names: want at most {MOST_NAMES}, got {len(request.alt_names)}")
    return CertificateWishes(
        org_name=None,
        subject=request.subject,
        subject_alt_names=request.alt_names,
        usage_server_auth=request.usage_server_auth,
        usage_client_auth=request.usage_client_auth,
        ext_quote=request.usage_ra_tls,
        ext_app_info=request.with_app_info,
        not_before=not_before,
        not_after=not_after,
    )


def _require_chain(chain: tuple[str, ...], key: ec.EllipticCurvePrivateKey, root_spki: bytes) -> None:
    """That *chain* certifies *key*, and ends at the root that this guest has measured.

    Raises:
        PeerRefusedError: It does not.
    """
    if len(chain) != 3:
        raise PeerRefusedError(f"KMS: certificate_chain: want leaf, app CA and root, got {len(chain)} certificates")
    try:
        leaf, app_ca, root = map(load_certificate, chain)
        _require_issued(leaf, app_ca)
        _require_issued(app_ca, root)
    except KeyMalformedError as exc:
        raise PeerRefusedError(f"KMS: certificate_chain: {exc}") from exc
    if spki_der(leaf) != spki_der(key):
        raise PeerRefusedError("KMS: certificate_chain: its first certificate is for another key than was asked for")
    if spki_der(root) != root_spki:
        raise PeerRefusedError("KMS: certificate_chain: its root is not the one that gave this guest its keys")


def _require_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as exc:
        raise PeerRefusedError("KMS: certificate_chain: one certificate is not signed by the next") from exc
