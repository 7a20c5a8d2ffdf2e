"""The first start: fresh root keys, or those of another KMS; once, and only if the chain permits this machine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dstack.attestation.evidence import serialise_evidence
from dstack.attestation.report_data import bootstrap_report_data
from dstack.errors import KeystoreError
from dstack.keys.certs import require_server_name
from dstack.wire.kms import BootstrapResponse, OnboardResponse
from dstack.wire.message import to_json
from kms.authorization import ChainAuthority, SelfAuthorization
from kms.decisions import Question, Subject
from kms.evidence import EvidenceVerifier, QuoteProvider
from kms.generation import dress_keys, generate_keys
from kms.keystore import KeySet, Keystore
from kms.replication import Replication

_log = logging.getLogger(__name__)


class Onboarding:
    """Brings root keys into the keystore, once.

    Args:
        keystore: Where they go.
        quotes: Evidence about this machine.
        verifier: Verifies it, and another KMS's.
        own: Whether the chain permits this machine.
        authority: The same chain, about another KMS.
    """

    def __init__(
        self,
        keystore: Keystore,
        quotes: QuoteProvider,
        verifier: EvidenceVerifier,
        own: SelfAuthorization,
        authority: ChainAuthority,
    ) -> None:
        self._keystore = keystore
        self._quotes = quotes
        self._verifier = verifier
        self._own = own
        self._replication = Replication(quotes, verifier, authority)
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
        with self._once("KMS has already been bootstrapped"):
            self._own.require(Question(Subject.BOOTSTRAP, request_id))
            keys = generate_keys(domain, self._quotes, at=self._verifier.clock())
            answer = self._attest(keys)
            self._keystore.create(keys, to_json(answer))
            _log.info("bootstrapped: root k256 key %s", answer.k256_pubkey.hex())
            return answer

    def onboard(self, source_url: str, domain: str, request_id: str) -> OnboardResponse:
        """Fetch the root keys of another KMS, and keep them; all of it or nothing.

        Args:
            source_url: The other KMS.
            domain: The name this KMS will be reached under.
            request_id: For the log.

        Raises:
            InputError: *domain* is not a name for a server, or *source_url* not the URL of a KMS.
            KeystoreError: There are keys already, or they cannot be written.
            KeyReleaseDeniedError: The chain does not permit this machine or the other, or the other denies us.
            RefusedError: The other refuses otherwise, or is not what it must be.
            UnavailableError: The other, the chain, the guest agent or collateral could not be asked.
        """
        require_server_name(domain)
        with self._once("KMS has already been onboarded"):
            self._own.require(Question(Subject.SELF, request_id))
            received = self._replication.fetch(source_url, request_id)
            at = self._verifier.clock()
            keys = dress_keys(received.roots, received.temp_ca_key, domain, self._quotes, at=at)
            self._keystore.create(keys, None)
            _log.info("onboarded: root k256 key %s", keys.roots.k256_pubkey.hex())
            return OnboardResponse(keys.roots.k256_pubkey)

    def require_keys(self) -> None:
        """Return only if onboarding is over.

        Raises:
            KeystoreError: There are no keys yet.
        """
        if not self._keystore.exists():
            raise KeystoreError("KMS has not been bootstrapped yet")

    @property
    def is_over(self) -> bool:
        """Whether there are keys."""
        return self._keystore.exists()

    @contextmanager
    def _once(self, otherwise: str) -> Iterator[None]:
        """One at a time, and only as long as there are no keys."""
        with self._lock:
            if self._keystore.exists():
                raise KeystoreError(otherwise)
            yield

    def _attest(self, keys: KeySet) -> BootstrapResponse:
        ca_pubkey, k256_pubkey = keys.roots.ca_spki, keys.roots.k256_pubkey
        bound_to = bootstrap_report_data(ca_pubkey, k256_pubkey)
        evidence = self._quotes.evidence(bound_to)
        self._verifier.appraise(evidence, bound_to=bound_to)
        return BootstrapResponse(ca_pubkey, k256_pubkey, serialise_evidence(evidence))
