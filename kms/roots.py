"""The root keys, and everything that is made with them. No other module of the KMS can reach them.

They leave this module in three ways: as the files of the keystore, to another KMS by the chain's permit for it, and as
what is derived from them for an app by the chain's permit for that app.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import coincurve
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.signing_request import SigningRequest
from dstack.errors import KeyMalformedError, KeyReleaseDeniedError
from dstack.keys.app_certs import build_app_leaf
from dstack.keys.certs import Extension, build_app_ca, build_root_ca, build_rpc_cert
from dstack.keys.derivation import (
    AppKeys,
    RootKeys,
    derive_app_ca,
    derive_app_keys,
    derive_env_key,
    env_public_key,
)
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, p256_scalar, private_key_pem, spki_der
from dstack.keys.scalars import k256_public_key, p256_from_scalar
from dstack.keys.signature_chain import sign_env_public_key
from dstack.values import AppId
from dstack.wire.kms import KmsKeys
from kms.authorization import Permit
from kms.decision_log.signing import DecisionSigner
from kms.decisions import Subject

ROOT_CA_KEY, ROOT_K256_KEY = "root-ca.key", "root-k256.key"
"""Upstream's names for the files that hold the root keys (kms.md 10.2)."""


@dataclass(frozen=True, slots=True)
class EnvKey:
    """The public key that an app's environment is encrypted to, and the root's word for it, without and with a time.

    `epoch` is the key epoch that it belongs to.
    """

    public_key: bytes
    timestamp: int
    signature: bytes
    signature_v1: bytes
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Roots:
    """The two root keys of a KMS. Does not show them in `repr`."""

    _keys: RootKeys = field(repr=False)

    @classmethod
    def generate(cls) -> Roots:
        """Fresh ones."""
        return cls(
            RootKeys(ca=p256_scalar(ec.generate_private_key(ec.SECP256R1())), k256=coincurve.PrivateKey().secret)
        )

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Roots:
        """Those that `files` wrote.

        Raises:
            KeyMalformedError: A file is not of its form.
        """
        return cls(RootKeys(ca=p256_scalar(load_private_key(files[ROOT_CA_KEY])), k256=files[ROOT_K256_KEY]))

    @classmethod
    def from_peer(cls, keys: KmsKeys) -> Roots:
        """Those that another KMS handed over.

        Raises:
            KeyMalformedError: They are not keys.
        """
        return cls(RootKeys(ca=p256_scalar(load_private_key(keys.ca_key)), k256=keys.k256_key))

    def files(self) -> dict[str, bytes]:
        """What the keystore keeps, by file name; for the keystore alone."""
        return {
            ROOT_CA_KEY: private_key_pem(p256_from_scalar(self._keys.ca)).encode(),
            ROOT_K256_KEY: self._keys.k256,
        }

    @property
    def ca_spki(self) -> bytes:
        """The root CA's SubjectPublicKeyInfo, DER: what this KMS is known by."""
        return spki_der(p256_from_scalar(self._keys.ca))

    @property
    def k256_pubkey(self) -> bytes:
        """The compressed public key of the k256 root, 33 bytes."""
        return k256_public_key(self._keys.k256)

    def issue_root_ca(self, *, at: datetime) -> str:
        """The root CA's certificate, PEM: another text each time, of the same key."""
        return certificate_pem(build_root_ca(p256_from_scalar(self._keys.ca), at=at))

    def issue_rpc_certificate(
        self,
        root_ca_pem: str,
        key: ec.EllipticCurvePrivateKey,
        domain: str,
        extensions: Iterable[Extension],
        *,
        at: datetime,
    ) -> str:
        """A server certificate of this KMS, PEM.

        Raises:
            InputError: *domain* is not a name for a server.
            KeyMalformedError: *root_ca_pem* is not of this root.
        """
        root_ca = load_certificate(root_ca_pem)
        built = build_rpc_cert(key, root_ca, p256_from_scalar(self._keys.ca), domain, extensions, at=at)
        return certificate_pem(built)

    def decision_signer(self) -> DecisionSigner:
        """What signs the log of decisions."""
        return DecisionSigner.derive(self._keys.k256)

    def env_key(self, app_id: AppId, *, epoch: int, at: datetime) -> EnvKey:
        """What anyone may encrypt an environment of this app to, in one key epoch."""
        public_key = env_public_key(derive_env_key(self._keys, app_id, epoch))
        timestamp = int(at.timestamp())
        return EnvKey(
            public_key=public_key,
            timestamp=timestamp,
            signature=sign_env_public_key(self._keys.k256, app_id, public_key, None),
            signature_v1=sign_env_public_key(self._keys.k256, app_id, public_key, timestamp),
            epoch=epoch,
        )

    def release_app_keys(self, permit: Permit, *, epoch: int) -> AppKeys:
        """Carry out a permit: the keys of the app and instance that it names, in one key epoch.

        Raises:
            KeyReleaseDeniedError: The permit is for something else.
        """
        _require_subject(permit, Subject.APP)
        return derive_app_keys(self._keys, permit.boot.app_id, permit.boot.instance_id, epoch)

    def release_root_keys(self, permit: Permit) -> KmsKeys:
        """Carry out a permit: the root keys, for a machine that the chain permits to be a KMS.

        Raises:
            KeyReleaseDeniedError: The permit is for something else.
        """
        _require_subject(permit, Subject.KMS)
        return KmsKeys(ca_key=self.files()[ROOT_CA_KEY].decode(), k256_key=self._keys.k256)

    def sign_certificate(
        self,
        permit: Permit,
        request: SigningRequest,
        root_ca_pem: str,
        *,
        epoch: int,
        at: datetime,
        app_info: bytes | None,
        attestation: bytes | None,
    ) -> tuple[str, str, str]:
        """Carry out a permit: a certificate under the authority that the app has in one key epoch.

        Returns:
            Leaf, app CA, root; each PEM.

        Raises:
            KeyReleaseDeniedError: The permit is for something else.
            InputError: The request wishes what a certificate cannot hold.
        """
        _require_subject(permit, Subject.CERTIFICATE)
        app_id = permit.boot.app_id
        app_key = p256_from_scalar(derive_app_ca(self._keys, app_id, epoch))
        root_ca = load_certificate(root_ca_pem)
        app_ca = build_app_ca(app_key, root_ca, p256_from_scalar(self._keys.ca), app_id, at=at)
        leaf = build_app_leaf(
            request.public_key,
            app_ca,
            app_key,
            app_id,
            request.wishes,
            at=at,
            app_info=app_info,
            attestation=attestation,
        )
        return certificate_pem(leaf), certificate_pem(app_ca), root_ca_pem

    def require_certificate(self, root_ca_pem: str) -> None:
        """Refuse a certificate that is not of this root.

        Raises:
            KeyMalformedError: It is not.
        """
        if spki_der(load_certificate(root_ca_pem)) != self.ca_spki:
            raise KeyMalformedError("certificate: its public key is not that of the private key beside it")


def _require_subject(permit: Permit, subject: Subject) -> None:
    if permit.subject is not subject:
        raise KeyReleaseDeniedError(
            "WRONG_PERMIT", f"want a permit for {subject.label}, got one for {permit.subject.label}"
        )
