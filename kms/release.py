"""App keys, and what is published about them. A permit for the app is the only way to its keys.

The order for an app that asks: this KMS itself is permitted, the caller's evidence is bound to its connection,
genuine and of a known image, the contracts permit it; then the keys are derived.
"""

from __future__ import annotations

from dataclasses import dataclass

from dstack.keys.derivation import AppKeys, RootKeys, derive_app_keys, derive_env_key, env_public_key
from dstack.keys.signature_chain import sign_env_public_key
from dstack.values import AppId
from kms.authorization import ChainAuthority, Permit, SelfAuthorization, authorize
from kms.decisions import Question, Subject
from kms.evidence import EvidenceVerifier


def release_app_keys(root: RootKeys, permit: Permit) -> AppKeys:
    """Carry out a permit: the keys of the app and instance that it names."""
    return derive_app_keys(root, permit.boot.app_id, permit.boot.instance_id)


@dataclass(frozen=True, slots=True)
class ReleasedKeys:
    """The keys, and the permit they were released by."""

    keys: AppKeys
    permit: Permit


@dataclass(frozen=True, slots=True)
class EnvKey:
    """The public key that an app's environment is encrypted to, and the root's word for it, without and with a time."""

    public_key: bytes
    timestamp: int
    signature: bytes
    signature_v1: bytes


@dataclass(frozen=True, slots=True)
class KeyRelease:
    """Answers those who want something of the root keys."""

    root: RootKeys
    own: SelfAuthorization
    verifier: EvidenceVerifier
    authority: ChainAuthority

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
            lambda: self.verifier.appraise_caller(certificate_der, vm_config=vm_config),
            self.authority.authorize_app,
        )
        return ReleasedKeys(release_app_keys(self.root, permit), permit)

    def env_key(self, app_id: AppId, request_id: str) -> EnvKey:
        """The key that anyone may encrypt an environment of this app to.

        Raises:
            KeyReleaseDeniedError: The chain does not permit this KMS.
            UnavailableError: It could not be asked.
        """
        self.require_self(request_id)
        public_key = env_public_key(derive_env_key(self.root, app_id))
        timestamp = int(self.verifier.clock().timestamp())
        return EnvKey(
            public_key=public_key,
            timestamp=timestamp,
            signature=sign_env_public_key(self.root.k256, app_id, public_key, None),
            signature_v1=sign_env_public_key(self.root.k256, app_id, public_key, timestamp),
        )
