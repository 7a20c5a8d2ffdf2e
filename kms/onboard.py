"""The first start: fresh root keys, if the chain permits this machine to be a KMS."""

from __future__ import annotations

import threading

from dstack.attestation.evidence import serialise_evidence
from dstack.attestation.report_data import bootstrap_report_data
from dstack.errors import KeystoreError
from dstack.keys.certs import require_server_name
from dstack.keys.pem import load_certificate, spki_der
from dstack.wire.kms import BootstrapResponse
from dstack.wire.message import to_json
from kms.authorization import SelfAuthorization
from kms.decisions import Question, Subject
from kms.evidence import EvidenceVerifier, QuoteProvider
from kms.generation import generate_keys
from kms.keystore import KeySet, Keystore


class Onboarding:
    """Makes the root keys, once."""

    def __init__(
        self, keystore: Keystore, quotes: QuoteProvider, verifier: EvidenceVerifier, own: SelfAuthorization
    ) -> None:
        self._keystore = keystore
        self._quotes = quotes
        self._verifier = verifier
        self._own = own
        self._lock = threading.Lock()

    def bootstrap(self, domain: str, request_id: str) -> BootstrapResponse:
        """Make root keys, have them quoted, and keep them; all of it or nothing.

        Args:
            domain: The name this KMS will be reached under.
            request_id: For the log.

        Raises:
            InputError: *domain* is not a name for a server.
            KeystoreError: There are keys already, or they cannot be written.
            KeyReleaseDeniedError: The chain does not permit this machine.
            UnavailableError: The chain or the guest agent could not be asked.
        """
        require_server_name(domain)
        with self._lock:
            if self._keystore.exists():
                raise KeystoreError("KMS has already been bootstrapped")
            self._own.require(Question(Subject.BOOTSTRAP, request_id))
            keys = generate_keys(domain, self._quotes, at=self._verifier.clock())
            answer = self._attest(keys)
            self._keystore.create(keys, to_json(answer))
            return answer

    def require_keys(self) -> None:
        """Return only if onboarding is over.

        Raises:
            KeystoreError: There are no keys yet.
        """
        if not self._keystore.exists():
            raise KeystoreError("KMS has not been bootstrapped yet")

    def _attest(self, keys: KeySet) -> BootstrapResponse:
        ca_pubkey = spki_der(load_certificate(keys.root_ca_pem))
        k256_pubkey = keys.roots.k256_pubkey
        bound_to = bootstrap_report_data(ca_pubkey, k256_pubkey)
        evidence = self._quotes.evidence(bound_to)
        self._verifier.appraise(evidence, bound_to=bound_to)
        return BootstrapResponse(ca_pubkey, k256_pubkey, serialise_evidence(evidence))
