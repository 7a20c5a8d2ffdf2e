"""What is given to whom: app keys, certificates, root keys, and what is published about them.

The order for whoever asks: this KMS itself is permitted; the evidence is bound to the asker's key, genuine and of a
known image; the contracts permit it. Then, and only with that permit, the root keys are used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from dstack.attestation.app_info import AppInfo, serialise_app_info
from dstack.attestation.appraise import Appraisal
from dstack.attestation.evidence import serialise_evidence, strip_evidence
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.signing_request import SigningRequest, verify_signing_request
from dstack.errors import UnavailableError
from dstack.keys.derivation import AppKeys
from dstack.policy import BootInfo, boot_info
from dstack.policy.boot_info import boot_time_info
from dstack.policy.key_epochs import KeyEpochs
from dstack.values import AppId
from dstack.wire.kms import KmsKeys
from kms.authorization import ChainAuthority, Permit, SelfAuthorization, authorize
from kms.decisions import Question, Subject
from kms.evidence import EvidenceVerifier
from kms.roots import EnvKey, Roots


@dataclass(frozen=True, slots=True)
class ReleasedKeys:
    """The keys, and the permit they were released by.

    Attributes:
        keys: Those of the current key epoch.
        epoch: Its number.
        previous: Those of the epoch before, as long as it is served.
        permit: The chain's yes.
    """

    keys: AppKeys
    epoch: int
    previous: AppKeys | None
    permit: Permit


class NewestEpochs:
    """The newest key epoch that a permit named: epochs do not go back, whatever an endpoint of the chain says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest = 0

    def advance(self, permit: Permit) -> KeyEpochs:
        """The epochs of the chain in the state that the permit rests on.

        Raises:
            UnavailableError: The chain was further already, so that state is not the present one.
        """
        epochs = permit.granted.epochs
        with self._lock:
            if epochs.current < self._newest:
                raise UnavailableError(f"could not ask: key epoch went back from {self._newest} to {epochs.current}")
            self._newest = epochs.current
        return epochs


@dataclass(frozen=True, slots=True)
class KeyRelease:
    """Answers those who want something of the root keys."""

    roots: Roots
    own: SelfAuthorization
    verifier: EvidenceVerifier
    authority: ChainAuthority
    epochs: NewestEpochs = field(default_factory=NewestEpochs)

    def require_self(self, request_id: str) -> None:
        """Return only if the chain permits this KMS, now.

        Raises:
            KeyReleaseDeniedError: It does not.
            UnavailableError: It could not be asked.
        """
        self.own.require(Question(Subject.SELF, request_id))

    def require_self_recently(self, request_id: str) -> None:
        """Return only if the chain permitted this KMS within the last minute; for what is no secret.

        Raises:
            KeyReleaseDeniedError: It did not.
            UnavailableError: It was not to be asked for longer.
        """
        self.own.require_recent(Question(Subject.SELF, request_id))

    def app_keys(self, certificate_der: bytes | None, vm_config: str, request_id: str) -> ReleasedKeys:
        """The keys of the app that is at the other end of the connection.

        Args:
            certificate_der: The client's certificate, from TLS.
            vm_config: Replaces the config in its evidence unless empty.
            request_id: For the log.

        Raises:
            KeyReleaseDeniedError: A rule of the chain, or of the evidence, denies it.
            UnavailableError: It could not be asked.
        """
        self.require_self(request_id)
        permit = authorize(
            Question(Subject.APP, request_id),
            self._caller(certificate_der, vm_config),
            self.authority.authorize_app,
        )
        epochs = self.epochs.advance(permit)
        before = epochs.previous(self._at(permit))
        return ReleasedKeys(
            keys=self.roots.release_app_keys(permit, epoch=epochs.current),
            epoch=epochs.current,
            previous=None if before is None else self.roots.release_app_keys(permit, epoch=before),
            permit=permit,
        )

    def root_keys(self, certificate_der: bytes | None, vm_config: str, request_id: str) -> KmsKeys:
        """The root keys, for the KMS that is at the other end of the connection.

        Args:
            certificate_der: The client's certificate, from TLS.
            vm_config: Replaces the config in its evidence unless empty.
            request_id: For the log.

        Raises:
            KeyReleaseDeniedError: A rule of the chain, or of the evidence, denies it.
            UnavailableError: It could not be asked.
        """
        self.require_self(request_id)
        permit = authorize(
            Question(Subject.KMS, request_id),
            self._caller(certificate_der, vm_config),
            self.authority.authorize_kms,
        )
        return self.roots.release_root_keys(permit)

    def certificate(
        self, root_ca_pem: str, api_version: int, csr: bytes, signature: bytes, vm_config: str, request_id: str
    ) -> tuple[str, str, str]:
        """A certificate for an app's own use, for whoever holds the key in *csr* on a machine that the chain permits.

        Args:
            root_ca_pem: The root that the chain of certificates shall end at.
            api_version: The form of *csr*, 1 or 2.
            csr: The signing request, as received.
            signature: Over *csr*, by the key in it.
            vm_config: Replaces the config in its evidence unless empty.
            request_id: For the log.

        Returns:
            Leaf, app CA, root; each PEM.

        Raises:
            InputError: *csr* is not of its form, or wishes what a certificate cannot hold.
            SignatureUntrustedError: The key in *csr* did not sign it.
            KeyReleaseDeniedError: A rule of the chain, or of the evidence, denies it.
            UnavailableError: It could not be asked.
        """
        self.require_self(request_id)
        request = verify_signing_request(api_version, csr, signature)
        described: list[Appraisal] = []
        permit = authorize(
            Question(Subject.CERTIFICATE, request_id),
            lambda: self._requester(request, vm_config),
            self.authority.authorize_app,
            describe=partial(_noted_boot_time, described),
        )
        wishes = request.wishes
        return self.roots.sign_certificate(
            permit,
            request,
            root_ca_pem,
            epoch=self.epochs.advance(permit).current,
            at=self.verifier.clock(),
            app_info=_app_info(boot_info(described[0])) if wishes.ext_app_info else None,
            attestation=serialise_evidence(strip_evidence(request.evidence)) if wishes.ext_quote else None,
        )

    def env_key(self, app_id: AppId, epoch: int | None, request_id: str) -> EnvKey:
        """The key that anyone may encrypt an environment of this app to.

        Args:
            app_id: The app.
            epoch: The key epoch; None for the current one.
            request_id: For the log.

        Raises:
            RefusedError: That epoch is not served.
            KeyReleaseDeniedError: The chain does not permit this KMS.
            UnavailableError: It could not be asked.
        """
        permit = self.own.require(Question(Subject.SELF, request_id))
        epochs, at = self.epochs.advance(permit), self._at(permit)
        served = epochs.current if epoch is None else epochs.require_served(epoch, at)
        return self.roots.env_key(app_id, epoch=served, at=self.verifier.clock())

    def _at(self, permit: Permit) -> datetime:
        """Now, by the later of two clocks: a host that turns back its own does not keep an epoch alive."""
        block = datetime.fromtimestamp(permit.granted.block.timestamp, UTC)
        return max(self.verifier.clock(), block)

    def _caller(self, certificate_der: bytes | None, vm_config: str) -> Callable[[], Appraisal]:
        return lambda: self.verifier.appraise_caller(certificate_der, vm_config=vm_config)

    def _requester(self, request: SigningRequest, vm_config: str) -> Appraisal:
        bound_to = ratls_report_data(request.spki)
        return self.verifier.appraise(request.evidence, bound_to=bound_to, vm_config=vm_config)


def _noted_boot_time(described: list[Appraisal], appraisal: Appraisal) -> BootInfo:
    described.append(appraisal)
    return boot_time_info(appraisal)


def _app_info(boot: BootInfo) -> bytes:
    """What the certificate says of the machine, from verified evidence: its device is named, which upstream cannot."""
    return serialise_app_info(
        AppInfo(
            app_id=boot.app_id,
            compose_hash=boot.compose_hash,
            instance_id=boot.instance_id or b"",
            device_id=boot.device_id,
            mr_system=boot.mr_system,
            mr_aggregated=boot.mr_aggregated,
            os_image_hash=boot.os_image_hash,
            key_provider_info=boot.key_provider_info,
        )
    )
